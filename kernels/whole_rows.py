"""out[m, :] = residual[m, :] + y[m, :], and norm(out[m, :]): a product whose programs hold whole rows.

x: M rows of K, weight: (C, K), y = x weight^T + bias, out and its layer norm: M rows of C. It is the transformer's
attention projection (linear_norm.py) and, with a layer norm and a GELU of y before it is added, the coupling unit from
the CNN (fcu_down.py). The norm is what the next product reads: normalizing on its way in would be done anew by each
block of its columns.

A program holds its rows in pieces of 64 channels (384 = 6 * 64, 576 = 9 * 64): this wastes none, and the residual and
the norms' parameters, which would not fit the registers beside all of the products, are read for one piece at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import add_product, as_read, gelu, inverse_of, scaled, stored, zero_sums
from .chips import Chip, chip_of
from .dependent import fetch_weight, wait_for_earlier
from .launch import STORED, Kept, Plan, Scales, dot_precision, launch, unsupported_dtype
from .norm import Norm
from .tiles import Tile, ceil_div, power_of_two


@triton.jit(do_not_specialize=["M", "T", "width"])  # two binaries for all batches and image sizes, by ALONE
def whole_rows_kernel(
    x_ptr,  # in  M rows of K; if COUPLED the map (B, H, W, K)
    weight_ptr,  # in  (C, K)
    bias_ptr,  # in  (C,)
    residual_ptr,  # in  (M, C)
    input_scale_ptr,  # in  scalar, if SCALED
    weight_scale_ptr,  # in  (C,), if SCALED
    inner_weight_ptr,  # in  (C,), if COUPLED
    inner_bias_ptr,  # in  (C,), if COUPLED
    norm_weight_ptr,  # in  (C,)
    norm_bias_ptr,  # in  (C,)
    normed_scale_ptr,  # in  scalar, if normed is in 8 bits
    out_ptr,  # out (M, C)
    normed_ptr,  # out (M, C)
    M,  # rows
    K,  # products per element
    T,  # rows per image, if COUPLED
    width,  # and tokens per line of the image
    stride_image,  # and elements of x from image to image
    stride_row,  # and from one line of pixels to the next
    inner_eps,  # added to the variance of y
    norm_eps,  # added to the variance of out
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    ALONE: tl.constexpr,  # and fetches the weight before that, as programs have a multiprocessor each
    C: tl.constexpr,  # channels
    S: tl.constexpr,  # pixels per token side, if COUPLED
    COUPLED: tl.constexpr,  # rows are tokens, the first of an image is the class token; y = gelu(inner norm(y))
    SCALED: tl.constexpr,  # the weight is in 8 bits
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,  # channels of a piece
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_range = row < M
    if COUPLED:
        token = row % T - 1  # -1: the class token
        start = (row // T).to(tl.int64) * stride_image + token // width * S * stride_row + token % width * S * K
        has_pixels = in_range & (token >= 0)
    else:
        start = row.to(tl.int64) * K
        has_pixels = in_range
    x_rows = x_ptr + start[:, None]
    k = tl.arange(0, BLOCK_K)

    PIECES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    acc: tl.tuple = ()
    for _ in tl.static_range(PIECES):
        acc += (zero_sums(BLOCK_M, BLOCK_C, weight_ptr.dtype.element_ty),)
    fetch_weight(weight_ptr, C * K, ALONE)
    wait_for_earlier(DEPENDENT)
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

    rows: tl.tuple = ()
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        y = scaled(acc[i], input_scale_ptr, weight_scale_ptr, c, C) if SCALED else acc[i]
        rows += (y + _vector(bias_ptr, c, C),)
    if COUPLED:
        mean, rstd = _statistics(rows, C, inner_eps, PIECES, BLOCK_C)

    out: tl.tuple = ()
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = in_range[:, None] & (c < C)[None, :]
        offset = row.to(tl.int64)[:, None] * C + c[None, :]
        residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        y = rows[i]
        if COUPLED:
            y = gelu((y - mean) * rstd * _vector(inner_weight_ptr, c, C) + _vector(inner_bias_ptr, c, C))
            y = tl.where((token < 0)[:, None], residual, y)  # the class token is added to itself
        value = (residual + y).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offset, value, mask=mask)
        out += (value.to(tl.float32),)
    mean, rstd = _statistics(out, C, norm_eps, PIECES, BLOCK_C)
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = in_range[:, None] & (c < C)[None, :]
        offset = row.to(tl.int64)[:, None] * C + c[None, :]
        normed = (out[i] - mean) * rstd * _vector(norm_weight_ptr, c, C) + _vector(norm_bias_ptr, c, C)
        tl.store(normed_ptr + offset, as_read(normed, normed_scale_ptr, normed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _statistics(pieces, C: tl.constexpr, eps, PIECES: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of each row of C that lies in pieces, as columns."""
    total = tl.sum(tl.where((tl.arange(0, BLOCK_C) < C)[None, :], pieces[0], 0.0), 1)
    for i in tl.static_range(1, PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        total += tl.sum(tl.where((c < C)[None, :], pieces[i], 0.0), 1)
    mean = (total / C)[:, None]
    squares = tl.zeros_like(total)
    for i in tl.static_range(PIECES):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        centered = tl.where((c < C)[None, :], pieces[i] - mean, 0.0)
        squares += tl.sum(centered * centered, 1)
    return mean, (1 / tl.sqrt(squares / C + eps))[:, None]


@triton.jit
def _vector(pointer, c, C):
    """Entries c, if below C, as a row."""
    return tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


def plan_whole_rows(
    problem: str,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
    scales: Scales,
    kept: Kept,
    inner: Norm | None = None,
    stride: int = 1,
) -> Plan:
    """residual + x weight^T + bias, and its `norm` in the bias's dtype or as it is `kept`. residual: (..., C); x: rows
    of K in that order.

    inner: if given, x is a map (B, H, W, K) and the rows are tokens, each of stride x stride pixels, behind a class
    token. The norm and a GELU of the product are added, and the class token to itself.
    """
    M, (C, K) = residual.numel() // residual.shape[-1], weight.shape
    residual, x = residual.contiguous(), x.contiguous()
    T, W = (residual.shape[1], x.shape[2]) if inner else (1, 1)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(bias.dtype, residual.dtype)
        out = torch.empty(residual.shape, dtype=dtype, device=weight.device)
        normed = torch.empty(residual.shape, dtype=kept.dtype or bias.dtype, device=weight.device)
        launch(
            whole_rows_kernel,
            (ceil_div(M, tile.m),),
            tile,
            x_ptr=x,
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            residual_ptr=residual,
            inner_weight_ptr=(inner or norm).weight.contiguous(),
            inner_bias_ptr=(inner or norm).bias.contiguous(),
            norm_weight_ptr=norm.weight.contiguous(),
            norm_bias_ptr=norm.bias.contiguous(),
            normed_scale_ptr=bias if kept.scale is None else kept.scale,
            out_ptr=out,
            normed_ptr=normed,
            M=M,
            K=K,
            T=T,
            width=W // stride,
            stride_image=x.stride(0),
            stride_row=W * K,
            inner_eps=(inner or norm).eps,
            norm_eps=norm.eps,
            C=C,
            S=stride,
            COUPLED=inner is not None,
            PRECISION=dot_precision(),
            BLOCK_M=tile.m,
            BLOCK_K=tile.k,
            BLOCK_C=min(PIECE, power_of_two(C)),
            **scales.arguments(instead=bias),
        )
        return out, normed

    chip = chip_of(weight.device)
    crowded = inner is not None or weight.dtype == torch.float8_e4m3fn
    tiles = _tiles(M, C, K, stride, crowded, weight.element_size(), x.element_size(), chip)
    unsupported = unsupported_dtype(weight, scales)
    if x.dtype in STORED and stride > 1:
        unsupported = "the kernel averages no numbers of 8 bits"
    if not (tiles or unsupported):
        unsupported = f"whole rows of {C} channels do not fit a program on {chip.name}"
    return Plan(problem, unsupported, tiles, run)


PIECE = 64  # channels


def _tiles(
    M: int, C: int, K: int, S: int, crowded: bool, element_size: int, row_size: int, chip: Chip
) -> tuple[Tile, ...]:
    """Tiles of m whole rows of C (n is 0: unused), the one with the smallest estimated time first; none for long rows.

    crowded:                whether a norm and a GELU come before the sum, or FP8 keeps sums of a step beside all
    element_size, row_size: bytes of an element of the weight, and of x

    The estimate is the traffic of the busiest multiprocessor: each program reads all weights once, and the residual and
    the result are 4 bytes an element each; the norm is left out. So one image gets many programs, a large batch few
    readings of the weights.
    """
    columns = ceil_div(C, PIECE) * PIECE
    rows = []  # and warps: those whose products and what follows them fit the registers
    if columns <= 1024:
        rows += [(16, 8)]
    if element_size <= 2 and columns <= 768:
        rows += [(32, 8)]
    if row_size == element_size <= 2 and columns <= 576 and S == 1:  # what is made in registers is no operand for them
        several = {90: [(64, 8), (64, 16)], 100: [(64, 8)]}.get(chip.capability, [])
        if element_size == 1:  # sums are kept twice: integers beside float32, FP8's of a step beside all of them
            several = several[1:] if columns <= 384 or not crowded else []
        rows += several
    steps = (128, 64) if element_size == 1 else (64, 32, 16)
    tiles = []
    for m, warps in rows:
        for k in sorted(steps, key=lambda k: (ceil_div(K, k) * k, -k)):  # least padding, then fewest steps
            room = chip.shared - (m * k if element_size == 1 else 0)  # 8 bits on their way from registers
            held = room // ((m * row_size + columns * element_size) * k)  # steps
            stages = held if m == 64 else held + 1  # products of 64 rows read one step as the next arrives
            if m == 32 and k == 128 and chip.capability != 90:
                continue  # where two blocks might run, the assembler spills to let them
            if k * element_size <= 128 and stages >= 2:
                tiles.append(Tile(m, 0, k, warps, min(4, max(2, ceil_div(K, k)), stages)))
                break

    def traffic(tile: Tile) -> int:
        return ceil_div(ceil_div(M, tile.m), chip.sms) * (columns * K * element_size + tile.m * C * 8)

    return tuple(sorted(tiles, key=traffic))
