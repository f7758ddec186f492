"""out[b, 1 + n] = tokens[b, 1 + n] + gelu(norm(mean(x[b, window n]) weight^T + bias)), and out[b, 0] = 2 tokens[b, 0].

x: the map (B, H, W, K), weight: (C, K), tokens and out: (B, T, C); window n is the S x S pixels of token n. One kernel
from the map to the transformer's input: a program holds whole rows of C, so that the norm follows the product in
registers. It holds them in pieces of 64 channels (384 = 6 * 64, 576 = 9 * 64): this wastes none, and the tokens and the
norm's parameters, which would not fit the registers beside all of the products, are read for one piece at a time.

All T rows of an image are rows of the product. The class token's row reads no pixels and is added to itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import add_product, gelu, inverse_of, scaled, stored, zero_sums
from .chips import Chip, chip_of
from .launch import Plan, Scales, dot_precision, launch, product_type, unsupported_dtype
from .tiles import Tile, ceil_div, power_of_two


@triton.jit(do_not_specialize=["M", "T", "width"])  # one binary for all batches and image sizes
def fcu_down_kernel(
    x_ptr,  # in  (B, H, W, K)
    tokens_ptr,  # in  (B, T, C)
    weight_ptr,  # in  (C, K)
    bias_ptr,  # in  (C,)
    input_scale_ptr,  # in  scalar, if SCALED
    weight_scale_ptr,  # in  (C,), if SCALED
    norm_weight_ptr,  # in  (C,)
    norm_bias_ptr,  # in  (C,)
    out_ptr,  # out (B, T, C)
    M,  # rows: B * T
    K,  # products per element
    T,  # rows per image
    width,  # tokens per line of the image
    stride_image,  # elements of x from image to image
    stride_row,  # from one line of pixels to the next
    norm_eps,  # added to the variance
    C: tl.constexpr,  # channels
    S: tl.constexpr,  # pixels per token side
    SCALED: tl.constexpr,  # the weight is in 8 bits
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,  # channels of a piece
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row % T - 1  # -1: the class token
    start = (row // T).to(tl.int64) * stride_image + token // width * S * stride_row + token % width * S * K
    x_rows = x_ptr + start[:, None]
    has_pixels = (row < M) & (token >= 0)
    k = tl.arange(0, BLOCK_K)

    PIECES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    acc: tl.tuple = ()
    for _ in tl.static_range(PIECES):
        acc += (zero_sums(BLOCK_M, BLOCK_C, weight_ptr.dtype.element_ty),)
    if SCALED:
        inverse = inverse_of(input_scale_ptr)

    for k0 in range(0, K, BLOCK_K):
        k_mask = k < K - k0
        x_mask = has_pixels[:, None] & k_mask[None, :]
        if S == 1:
            x = tl.load(x_rows + (k0 + k)[None, :], mask=x_mask, other=0.0)
        else:
            window = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
            for line in range(S):
                for pixel in tl.static_range(S):
                    pixels = x_rows + (line * stride_row + pixel * K)
                    window += tl.load(pixels + (k0 + k)[None, :], mask=x_mask, other=0.0).to(tl.float32)
            x = (window / (S * S)).to(x_ptr.dtype.element_ty)
        if SCALED:
            x = stored(x, inverse, weight_ptr.dtype.element_ty)
        sums: tl.tuple = ()
        for i in tl.static_range(PIECES):
            c = i * BLOCK_C + tl.arange(0, BLOCK_C)
            w_mask = k_mask[:, None] & (c < C)[None, :]
            weight = tl.load(weight_ptr + c[None, :] * K + (k0 + k)[:, None], mask=w_mask, other=0.0)
            sums += (add_product(acc[i], x, weight, PRECISION),)
        acc = sums

    total = tl.zeros((BLOCK_M,), tl.float32)
    biased: tl.tuple = ()
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        projected = scaled(acc[i], input_scale_ptr, weight_scale_ptr, c, C) if SCALED else acc[i]
        biased += (projected + _vector(bias_ptr, c, C),)
        total += tl.sum(biased[i], 1)
    mean = (total / C)[:, None]
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        centered = tl.where((c < C)[None, :], biased[i] - mean, 0.0)
        squares += tl.sum(centered * centered, 1)
    rstd = (1 / tl.sqrt(squares / C + norm_eps))[:, None]

    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        normed = (biased[i] - mean) * rstd * _vector(norm_weight_ptr, c, C) + _vector(norm_bias_ptr, c, C)
        offset = row.to(tl.int64)[:, None] * C + c[None, :]
        mask = (row < M)[:, None] & (c < C)[None, :]
        tokens = tl.load(tokens_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        out = tokens + tl.where((token < 0)[:, None], tokens, gelu(normed))
        tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _vector(pointer, c, C):
    """Entries c, if below C, as a row."""
    return tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


def plan_fcu_down(
    feature_map: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    stride: int,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Plan:
    """Arguments and result: functional.fcu_down."""
    scales = Scales(input_scale, weight_scale)
    feature_map, tokens = feature_map.contiguous(), tokens.contiguous()
    _, H, W, K = feature_map.shape
    B, T, C = tokens.shape

    def run(tile: Tile) -> Tensor:
        out = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
        launch(
            fcu_down_kernel,
            (ceil_div(B * T, tile.m),),
            tile,
            x_ptr=feature_map,
            tokens_ptr=tokens,
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            norm_weight_ptr=norm_weight.contiguous(),
            norm_bias_ptr=norm_bias.contiguous(),
            out_ptr=out,
            M=B * T,
            K=K,
            T=T,
            width=W // stride,
            stride_image=H * W * K,
            stride_row=W * K,
            norm_eps=norm_eps,
            C=C,
            S=stride,
            PRECISION=dot_precision(),
            BLOCK_M=tile.m,
            BLOCK_K=tile.k,
            BLOCK_C=min(PIECE, power_of_two(C)),
            **scales.arguments(instead=bias),
        )
        return out

    chip = chip_of(weight.device)
    tiles = _tiles(B * T, C, K, stride, weight.element_size(), feature_map.element_size(), chip)
    unsupported = unsupported_dtype(weight, scales)
    if not (tiles or unsupported):
        unsupported = f"whole rows of {C} channels do not fit a program on {chip.name}"
    dtype = product_type(weight, bias)
    return Plan(f"fcu_down {dtype} M{B * T} C{C} K{K} S{stride}", unsupported, tiles, run)


PIECE = 64  # channels


def _tiles(M: int, C: int, K: int, S: int, element_size: int, row_size: int, chip: Chip) -> tuple[Tile, ...]:
    """Tiles of m whole rows of C (n is 0: unused), the one with the smallest estimated time first; none for long rows.

    element_size, row_size: bytes of an element of the weight, and of the map

    The estimate is the traffic of the busiest multiprocessor: each program reads all weights once, and its tokens and
    the result are 4 bytes an element each. So one image gets many programs, a large batch few readings of the weights.
    """
    columns = ceil_div(C, PIECE) * PIECE
    rows = []  # and warps: those whose products and what follows them fit the registers
    if columns <= 1024:
        rows += [(16, 8)]
    if element_size <= 2 and columns <= 768:
        rows += [(32, 8)]
    if element_size == 2 and columns <= 576 and S == 1:  # averages or 8 bits made in registers are no operand for them
        rows += {90: [(64, 8), (64, 16)], 100: [(64, 8)]}.get(chip.capability, [])
    steps = (128, 64, 32) if element_size == 1 else (64, 32, 16)
    tiles = []
    for m, warps in rows:
        for k in sorted(steps, key=lambda k: (ceil_div(K, k) * k, -k)):  # least padding, then fewest steps
            room = chip.shared - (m * k if element_size == 1 else 0)  # 8 bits on their way from registers
            held = room // ((m * row_size + columns * element_size) * k)  # steps
            stages = held if m == 64 else held + 1  # products of 64 rows read one step as the next arrives
            if k * element_size <= 128 and stages >= 2:
                tiles.append(Tile(m, 0, k, warps, min(4, max(2, ceil_div(K, k)), stages)))
                break

    def traffic(tile: Tile) -> int:
        return ceil_div(ceil_div(M, tile.m), chip.sms) * (columns * K * element_size + tile.m * C * 8)

    return tuple(sorted(tiles, key=traffic))
