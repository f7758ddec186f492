"""out[b, h, w] = relu(sum over the 9 taps of x[b, h s + dy, w s + dx] weight[tap]^T + bias).

x: (B, H, W, K), zero outside; weight: (K', 3, 3, K); out: (B, H', W', K'). An implicit matrix product: a row is a pixel
of out, the sum runs over 9 K. Where the weight is in 8 bits, x is rounded on the way into the product.

With POOL > 1 the rows of the product are ordered by token: POOL * POOL adjacent rows are one token's pixels, and their
mean leaves as a second output (B, H' / POOL, W' / POOL, K'), which is all that FCU-down needs of the map.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles as tiles_module
from ._math import add_product, as_read, inverse_of, relu, scaled, stored, zero_sums
from .chips import chip_of
from .dependent import fetch_weight, wait_for_earlier
from .launch import (
    Kept,
    Plan,
    Scales,
    dot_precision,
    launch,
    must_wait,
    prepared,
    product_type,
    unsupported_dtype,
    words_of_8_bits,
)
from .tiles import Tile, ceil_div, piece_of


@triton.jit(
    do_not_specialize=["M", "H", "W", "height", "width"]
)  # two binaries for all batches and image sizes, by ALONE
def conv3x3_kernel(
    x_ptr,  # in  (B, H, W, K)
    weight_ptr,  # in  (N, 3, 3, K), N = K' output channels
    bias_ptr,  # in  (N,)
    input_scale_ptr,  # in  scalar, if SCALED
    weight_scale_ptr,  # in  (N,), if SCALED
    out_scale_ptr,  # in  scalar, if out is in 8 bits
    pooled_scale_ptr,  # in  scalar, if pooled is in 8 bits
    out_ptr,  # out (B, height, width, N)
    pooled_ptr,  # out (B, height / POOL, width / POOL, N), if POOL > 1
    M,  # B * height * width
    N,  # output channels
    K,  # input channels
    H,  # rows of x
    W,  # columns of x
    height,  # rows of out
    width,  # columns of out
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    ALONE: tl.constexpr,  # and fetches the weight before that, as programs have a multiprocessor each
    STRIDE: tl.constexpr,  # pixels of x from one pixel of out to the next
    SCALED: tl.constexpr,  # the weight is in 8 bits
    WAIT: tl.constexpr,  # finish the product of each step before the next (`launch.must_wait`)
    RELU: tl.constexpr,
    POOL: tl.constexpr,  # pixels of out per token side that are averaged; 1: no second output
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECE: tl.constexpr,  # channels that are multiplied, and leave, at a time: a power of two that divides BLOCK_N
):
    blocks_n = tl.cdiv(N, BLOCK_N)
    m = tl.program_id(0) // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = tl.program_id(0) % blocks_n * BLOCK_N
    k = tl.arange(0, BLOCK_K)
    token = m // (POOL * POOL)
    across = width // POOL
    image = token // (height // POOL * across)
    row = token // across % (height // POOL) * POOL + m % (POOL * POOL) // POOL
    column = token % across * POOL + m % POOL
    image = image.to(tl.int64)
    m_mask = m < M
    x_image = x_ptr + image * H * W * K

    fetch_weight(weight_ptr, N * 9 * K, ALONE)
    wait_for_earlier(DEPENDENT)
    if SCALED:
        inverse = inverse_of(input_scale_ptr)
    PIECES: tl.constexpr = BLOCK_N // PIECE
    sums: tl.tuple = ()
    for _ in tl.static_range(PIECES):
        sums += (zero_sums(BLOCK_M, PIECE, weight_ptr.dtype.element_ty),)
    steps = tl.cdiv(K, BLOCK_K)
    tl.assume(steps > 0)  # as in linear.py
    for step in range(9 * steps):
        tap = step // steps
        channel = step % steps * BLOCK_K + k
        h = row * STRIDE + tap // 3 - 1
        w = column * STRIDE + tap % 3 - 1
        inside = m_mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x_mask = inside[:, None] & (channel[None, :] < K)
        x = tl.load((x_image + (h * W + w) * K)[:, None] + channel[None, :], mask=x_mask, other=0.0)
        if SCALED:
            x = stored(x, inverse, weight_ptr.dtype.element_ty)
        added: tl.tuple = ()
        for i in tl.static_range(PIECES):
            n = first_n + i * PIECE + tl.arange(0, PIECE)
            weight_mask = (channel[:, None] < K) & (n < N)[None, :]
            weight_rows = weight_ptr + n[None, :] * (9 * K)
            weight = tl.load(weight_rows + (tap * K + channel)[:, None], mask=weight_mask, other=0.0)
            piece = add_product(sums[i], x, weight, PRECISION)
            if WAIT:
                piece = tl.where(step < 9 * steps, piece, 0)
            added += (piece,)
        sums = added

    pixel = (image * height + row) * width + column
    TOKENS: tl.constexpr = BLOCK_M // (POOL * POOL)
    for i in tl.static_range(PIECES):
        n = first_n + i * PIECE + tl.arange(0, PIECE)
        acc = scaled(sums[i], input_scale_ptr, weight_scale_ptr, n, N) if SCALED else sums[i]
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        if RELU:
            acc = relu(acc)
        mask = m_mask[:, None] & (n < N)[None, :]
        value = as_read(acc, out_scale_ptr, out_ptr.dtype.element_ty)
        tl.store(out_ptr + pixel[:, None] * N + n[None, :], value, mask=mask)
        if POOL > 1:
            pooled = tl.sum(tl.reshape(acc, (TOKENS, POOL * POOL, PIECE)), 1) / (POOL * POOL)
            t = tl.program_id(0) // blocks_n * TOKENS + tl.arange(0, TOKENS)
            mask = (t[:, None] < M // (POOL * POOL)) & (n < N)[None, :]
            t_row = t.to(tl.int64)[:, None] * N
            value = as_read(pooled, pooled_scale_ptr, pooled_ptr.dtype.element_ty)
            tl.store(pooled_ptr + t_row + n[None, :], value, mask=mask)


def plan_conv3x3(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    relu: bool = True,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.conv3x3."""
    scales, kept = Scales(input_scale, weight_scale), Kept(out_scale, out_dtype)
    return _plan("conv3x3", feature_map, weight, bias, stride, relu, 1, scales, kept, Kept())


def plan_conv3x3_pool(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    pool_stride: int,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    pooled_scale: Tensor | None = None,
    pooled_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.conv3x3_pool."""
    scales, kept = Scales(input_scale, weight_scale), (Kept(out_scale, out_dtype), Kept(pooled_scale, pooled_dtype))
    return _plan("conv3x3_pool", feature_map, weight, bias, stride, True, pool_stride, scales, *kept)


def _plan(
    operation: str,
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    rectified: bool,
    pool: int,
    scales: Scales,
    kept: Kept,
    kept_pooled: Kept,
) -> Plan:
    feature_map = feature_map.contiguous()
    computed = feature_map.dtype != weight.dtype
    (B, H, W, K), N = feature_map.shape, weight.shape[0]
    height, width = ceil_div(H, stride), ceil_div(W, stride)
    M = B * height * width
    chip = chip_of(weight.device)
    tiles = tiles_module.for_matmul(
        M,
        N,
        9 * K,
        chip,
        element_size=weight.element_size(),
        row_size=feature_map.element_size(),
        run=K,
        most=128 if chip.capability == 90 and not computed else 64,  # registers hold all its pointers
        computed=computed,
        wide=((256, 64, 8), (256, 96, 8), (256, 128, 8), (128, 192, 8)) + ((128, 256, 8),) * (pool == 1),
    )
    tiles = tuple(tile for tile in tiles if tile.m % pool**2 == 0)

    def run(tile: Tile) -> Tensor | tuple[Tensor, Tensor]:
        out = torch.empty((B, height, width, N), dtype=kept.dtype or bias.dtype, device=weight.device)
        pooled = out
        if operation == "conv3x3_pool":
            shape = B, height // pool, width // pool, N
            pooled = torch.empty(shape, dtype=kept_pooled.dtype or bias.dtype, device=weight.device)
        launch(
            conv3x3_kernel,
            (ceil_div(M, tile.m) * ceil_div(N, tile.n),),
            tile,
            x_ptr=feature_map,
            weight_ptr=prepared(weight, lambda weight: weight.permute(0, 2, 3, 1).contiguous()),
            bias_ptr=bias.contiguous(),
            out_scale_ptr=bias if kept.scale is None else kept.scale,
            pooled_scale_ptr=bias if kept_pooled.scale is None else kept_pooled.scale,
            out_ptr=out,
            pooled_ptr=pooled,
            M=M,
            N=N,
            K=K,
            H=H,
            W=W,
            height=height,
            width=width,
            STRIDE=stride,
            WAIT=must_wait(weight, computed),
            RELU=rectified,
            POOL=pool,
            PRECISION=dot_precision(),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            PIECE=piece_of(tile, pool > 1, integers=64 if weight.dtype == torch.int8 else None),
            **scales.arguments(instead=bias),
        )
        return out if pooled is out else (out, pooled)

    words = [operation, product_type(weight, bias), f"B{B} H{H} W{W} N{N} K{K} stride{stride}"]
    words += ["linear"] * (not rectified)
    words += [f"pool{pool}"] * (pool > 1) + words_of_8_bits(feature_map, out=kept, pooled=kept_pooled)
    unsupported = unsupported_dtype(weight, scales)
    if operation == "conv3x3_pool":
        unsupported = unsupported or _unsupported_pool(height, width, pool)
    return Plan(" ".join(words), unsupported, tiles, run)


def _unsupported_pool(height: int, width: int, pool: int) -> str | None:
    if pool not in (2, 4, 8):
        return f"the kernel averages 2, 4 or 8 pixels a token side, got {pool}"
    if height % pool or width % pool:
        return f"averaging {pool}x{pool} pixels needs a map of whole tokens, got {height}x{width}"
    return None
