"""conv_logits = mean(x) conv_weight^T + conv_bias, trans_logits = norm(tokens[:, 0]) trans_weight^T + trans_bias.

x: the map (B, H, W, K), averaged over its pixels; tokens: (B, T, C); weights: (N, K) and (N, C) for N classes; logits:
(B, N), and logits = their sum.

A program averages the pixels of its images itself, so each map is read once for every block of classes, from the cache:
`heads_tiles` weighs those reads against those of the weights. Products take 1 to 8 images, fewer than a matrix
instruction has rows; the others stay empty, for the time goes into loads.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import normalize, row_statistics
from .chips import Chip, chip_of
from .dependent import wait_for_earlier
from .launch import Plan, dot_precision, launch, product_type, unsupported_dtype
from .pool import class_rows
from .tiles import Tile, ceil_div, power_of_two


@triton.jit
def heads_kernel(
    x_ptr,  # in  (B, H, W, K)
    tokens_ptr,  # in  (B, T, C); only the class tokens are read
    norm_weight_ptr,  # in  (C,)
    norm_bias_ptr,  # in  (C,)
    conv_weight_ptr,  # in  (N, K)
    conv_bias_ptr,  # in  (N,)
    trans_weight_ptr,  # in  (N, C)
    trans_bias_ptr,  # in  (N,)
    conv_logits_ptr,  # out (B, N)
    trans_logits_ptr,  # out (B, N)
    logits_ptr,  # out (B, N)
    B,  # images
    N,  # classes
    pixels,  # H * W
    K,  # channels of the map
    C,  # channels of a token
    stride_tokens,  # elements from one image's class token to the next
    norm_eps,  # added to the variance
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_B: tl.constexpr,  # images of a program
    BLOCK_N: tl.constexpr,  # classes of a program
    BLOCK_P: tl.constexpr,  # pixels at a time
    BLOCK_K: tl.constexpr,  # channels at a time
):
    wait_for_earlier(DEPENDENT)
    # Blocks of the same images run next to each other, so that they share them in the cache.
    blocks_n = tl.cdiv(N, BLOCK_N)
    b = tl.program_id(0) // blocks_n * BLOCK_B + tl.arange(0, BLOCK_B)
    n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image = b.to(tl.int64)

    conv = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    maps = (x_ptr + image * pixels * K)[:, None, None]
    steps = tl.cdiv(pixels, BLOCK_P)  # of each block of channels, in one loop with it so that all loads run ahead
    for step in range(steps * tl.cdiv(K, BLOCK_K)):
        k = step // steps * BLOCK_K + tl.arange(0, BLOCK_K)
        p = step % steps * BLOCK_P + tl.arange(0, BLOCK_P)
        weight = _load_weight(conv_weight_ptr, n, N, k, K)
        mask = (b < B)[:, None, None] & (p < pixels)[None, :, None] & (k < K)[None, None, :]
        x = tl.load(maps + (p[None, :, None] * K + k[None, None, :]), mask=mask, other=0.0)
        mean = tl.sum(x.to(tl.float32), 1) / pixels  # (BLOCK_B, BLOCK_K), of these pixels
        conv = tl.dot(mean.to(weight.dtype), weight, conv, input_precision=PRECISION)

    trans = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    rows = tokens_ptr + image * stride_tokens
    first, mean, rstd = row_statistics(rows, b < B, C, norm_eps, 256)
    for c0 in range(0, C, BLOCK_K):
        c = c0 + tl.arange(0, BLOCK_K)
        weight = _load_weight(trans_weight_ptr, n, N, c, C)
        x = tl.load(rows[:, None] + c[None, :], mask=(b < B)[:, None] & (c < C)[None, :], other=0.0)
        x = normalize(x, first, mean, rstd, norm_weight_ptr, norm_bias_ptr, c, C)
        trans = tl.dot(x.to(weight.dtype), weight, trans, input_precision=PRECISION)

    conv += tl.load(conv_bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    trans += tl.load(trans_bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    mask = (b < B)[:, None] & (n < N)[None, :]
    offset = image[:, None] * N + n[None, :]
    tl.store(conv_logits_ptr + offset, conv.to(conv_logits_ptr.dtype.element_ty), mask=mask)
    tl.store(trans_logits_ptr + offset, trans.to(trans_logits_ptr.dtype.element_ty), mask=mask)
    tl.store(logits_ptr + offset, (conv + trans).to(logits_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_weight(weight_ptr, n, N, k, K):
    """(k, n) of a weight (N, K)."""
    return tl.load(weight_ptr + n[None, :] * K + k[:, None], mask=(n < N)[None, :] & (k < K)[:, None], other=0.0)


def plan_heads(
    feature_map: Tensor,
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    conv_weight: Tensor,
    conv_bias: Tensor,
    trans_weight: Tensor,
    trans_bias: Tensor,
) -> Plan:
    """Arguments and result: functional.heads.

    Tiles: m images and n classes to a program, k channels at a time.
    """
    B, H, W, K = feature_map.shape
    N, C = trans_weight.shape

    def run(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        conv, trans, both = (torch.empty((B, N), dtype=tokens.dtype, device=tokens.device) for _ in range(3))
        rows, stride = class_rows(tokens)
        launch(
            heads_kernel,
            (ceil_div(B, tile.m) * ceil_div(N, tile.n),),
            tile,
            x_ptr=feature_map.contiguous(),
            tokens_ptr=rows,
            norm_weight_ptr=norm_weight.contiguous(),
            norm_bias_ptr=norm_bias.contiguous(),
            conv_weight_ptr=conv_weight.contiguous(),
            conv_bias_ptr=conv_bias.contiguous(),
            trans_weight_ptr=trans_weight.contiguous(),
            trans_bias_ptr=trans_bias.contiguous(),
            conv_logits_ptr=conv,
            trans_logits_ptr=trans,
            logits_ptr=both,
            B=B,
            N=N,
            pixels=H * W,
            K=K,
            C=C,
            stride_tokens=stride,
            norm_eps=norm_eps,
            PRECISION=dot_precision(),
            BLOCK_B=tile.m,
            BLOCK_N=tile.n,
            BLOCK_P=_pixels_at_a_time(H * W),
            BLOCK_K=tile.k,
        )
        return conv, trans, both

    return Plan(
        f"heads {product_type(conv_weight)} B{B} P{H * W} K{K} C{C} N{N}",
        unsupported_dtype(conv_weight),
        heads_tiles(B, H * W, K, N, conv_weight.element_size(), chip_of(conv_weight.device)),
        run,
    )


def _pixels_at_a_time(pixels: int) -> int:
    return min(64, power_of_two(pixels))


def heads_tiles(B: int, pixels: int, K: int, N: int, element_size: int, chip: Chip) -> tuple[Tile, ...]:
    """The tiles of plan_heads, the one with the smallest estimated time first."""

    def time(tile: Tile) -> float:
        """In bytes that one multiprocessor could have read: those of the busiest one, or all of them from the L2 cache,
        which feeds 2 in 5 at once. A program costs 100,000 more."""
        programs = ceil_div(B, tile.m) * ceil_div(N, tile.n)
        read = (min(tile.m, B) * pixels + min(tile.n, N)) * K * element_size
        return max(ceil_div(programs, chip.sms) * (read + 100_000), programs * read / (0.4 * chip.sms))

    tiles = []
    for m, n in itertools.product((1, 2, 4, 8), (16, 32, 64, 128, 256)):
        pixel_block = m * _pixels_at_a_time(pixels)
        in_shared = (chip.shared - 8 * 1024) // (2 * element_size * (pixel_block + n))  # with two steps loaded ahead
        k = min(256, 16384 // pixel_block, in_shared)
        k = 1 << (k.bit_length() - 1)
        if k >= 32 and (m == 1 or m < 2 * B) and (n == 16 or n < 2 * N):
            tiles.append(Tile(m, n, k, 8, 3))
    return tuple(sorted(tiles, key=time)[:8])
