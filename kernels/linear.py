"""out[m, :] = relu(gelu(x[m, :] weight^T + bias) + residual[m, :]) + token_map[token of m, :], each part optional.

x: M rows of K, weight: (N, K), out: M rows of N. It is every product of the network: the token projections
(`plan_linear`), the 1x1 convolutions (conv1x1.py), FCU-up (fcu_up.py) and the patch embedding (patch_embed.py), which
differ in where the rows lie (`Rows`) and in what follows the product.

Where the weight is in 8 bits, so are the rows: they are numbers already, at the scale of the product's input, or become
so on their way into the product. The sums are multiplied by both scales, then all is as without. out may be the numbers
that its reader takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles as tiles_module
from ._math import (
    add_product,
    as_read,
    gelu,
    inverse_of,
    relu,
    scaled,
    stored,
    through_8_bits,
    token_of,
    zero_sums,
)
from .chips import chip_of
from .dependent import fetch_weight, wait_for_earlier
from .launch import (
    Kept,
    Plan,
    Scales,
    dot_precision,
    launch,
    must_wait,
    product_type,
    unsupported_dtype,
    words_of_8_bits,
)
from .tiles import Tile, ceil_div, piece_of


@triton.jit(
    do_not_specialize=["M", "rows_per_image", "width"]
)  # two binaries for all batches and image sizes, by ALONE
def linear_kernel(
    x_ptr,  # in  rows of K, found by the strides below
    weight_ptr,  # in  (N, K)
    bias_ptr,  # in  (N,)
    residual_ptr,  # in  (M, N), if RESIDUAL
    token_map_ptr,  # in  (images, rows_per_image / TOKEN_STRIDE ** 2, N), if TOKEN_STRIDE
    input_scale_ptr,  # in  scalar, if SCALED
    weight_scale_ptr,  # in  (N,), if SCALED
    addend_scale_ptr,  # in  scalar, if ADDEND_SCALED
    out_scale_ptr,  # in  scalar, if out is in 8 bits
    out_ptr,  # out (M, N); with SKIP_CLASS (images, 1 + rows_per_image, N) without the first row of each image
    M,  # rows
    N,  # columns
    K,  # products per element
    rows_per_image,  # row m is row m % rows_per_image of image m // rows_per_image
    width,  # and there at (row // width, row % width)
    stride_image,  # elements of x from image to image
    stride_row,  # from one line of `width` rows to the next
    stride_column,  # from row to row within a line
    stride_segment,  # from segment to segment of a row's K, if SEGMENT
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    ALONE: tl.constexpr,  # and fetches the weight before that, as programs have a multiprocessor each
    GELU: tl.constexpr,  # GELU of product and bias
    RESIDUAL: tl.constexpr,  # then add the residual
    RELU: tl.constexpr,  # then ReLU
    TOKEN_STRIDE: tl.constexpr,  # then add the token map, rows (pixels) per token side; 0: there is none
    DENSE: tl.constexpr,  # row m starts at m * stride_column
    SCALED: tl.constexpr,  # the weight is in 8 bits
    ADDEND_SCALED: tl.constexpr,  # round the residual to 8 bits
    SEGMENT: tl.constexpr,  # a row is made of pieces of this many elements; 0: it is contiguous
    WAIT: tl.constexpr,  # finish the product of each step before the next (`launch.must_wait`)
    SKIP_CLASS: tl.constexpr,  # leave a row for the class token before each image's rows of out
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECE: tl.constexpr,  # columns that are multiplied, and leave, at a time: a power of two that divides BLOCK_N
):
    # Blocks of one line of rows run next to each other, so that they share those rows in the cache.
    blocks_n = tl.cdiv(N, BLOCK_N)
    m = tl.program_id(0) // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = tl.program_id(0) % blocks_n * BLOCK_N
    k = tl.arange(0, BLOCK_K)
    row = m.to(tl.int64)
    if DENSE:
        start = row * stride_column
    else:
        pixel = m % rows_per_image
        start = (m // rows_per_image).to(tl.int64) * stride_image
        start += (pixel // width).to(tl.int64) * stride_row + pixel % width * stride_column
    x_rows = x_ptr + start[:, None]
    m_mask = m[:, None] < M

    fetch_weight(weight_ptr, N * K, ALONE)
    wait_for_earlier(DEPENDENT)
    if SCALED:
        inverse = inverse_of(input_scale_ptr)

    tl.assume(K > 0)  # else Hopper's products wait for each other: a loop that may not run shares their registers
    PIECES: tl.constexpr = BLOCK_N // PIECE
    sums: tl.tuple = ()
    for _ in tl.static_range(PIECES):
        sums += (zero_sums(BLOCK_M, PIECE, weight_ptr.dtype.element_ty),)
    for k0 in range(0, K, BLOCK_K):
        k_mask = k < K - k0
        column = k0 + k
        if SEGMENT > 0:
            column = column // SEGMENT * stride_segment + column % SEGMENT
        x = tl.load(x_rows + column[None, :], mask=m_mask & k_mask[None, :], other=0.0)
        if SCALED:
            x = stored(x, inverse, weight_ptr.dtype.element_ty)
        x = x.to(weight_ptr.dtype.element_ty)
        added: tl.tuple = ()
        for i in tl.static_range(PIECES):
            n = first_n + i * PIECE + tl.arange(0, PIECE)
            weight_rows = weight_ptr + n.to(tl.int64)[None, :] * K
            weight = tl.load(weight_rows + (k0 + k)[:, None], mask=k_mask[:, None] & (n < N)[None, :], other=0.0)
            piece = add_product(sums[i], x, weight, PRECISION)
            if WAIT:
                piece = tl.where(k0 < K, piece, 0)
            added += (piece,)
        sums = added

    out_row = row
    if SKIP_CLASS:
        out_row += m // rows_per_image + 1
    for i in tl.static_range(PIECES):
        n = first_n + i * PIECE + tl.arange(0, PIECE)
        n_mask = n[None, :] < N
        acc = scaled(sums[i], input_scale_ptr, weight_scale_ptr, n, N) if SCALED else sums[i]
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        if GELU:
            acc = gelu(acc)
        if RESIDUAL:
            residual = tl.load(residual_ptr + row[:, None] * N + n[None, :], mask=m_mask & n_mask, other=0.0)
            if ADDEND_SCALED:
                residual = through_8_bits(residual, addend_scale_ptr, weight_ptr.dtype.element_ty)
            acc += residual.to(tl.float32)
        if RELU:
            acc = relu(acc)
        if TOKEN_STRIDE > 0:
            token = token_of(m, rows_per_image, width, TOKEN_STRIDE)
            entry = token_map_ptr + token[:, None] * N + n[None, :]
            acc += tl.load(entry, mask=m_mask & n_mask, other=0.0).to(tl.float32)
        tl.store(
            out_ptr + out_row[:, None] * N + n[None, :],
            as_read(acc, out_scale_ptr, out_ptr.dtype.element_ty),
            mask=m_mask & n_mask,
        )


class Rows(NamedTuple):
    """Where the M rows of a product lie in `tensor`: `images` times `height` times `width`, strides in elements.

    segment: 0, or a row is made of pieces of that many elements, stride_segment apart.
    """

    tensor: Tensor
    images: int
    height: int
    width: int
    stride_image: int
    stride_row: int
    stride_column: int
    segment: int = 0
    stride_segment: int = 0

    @property
    def dense(self) -> bool:
        line = self.width * self.stride_column
        return (self.height == 1 or self.stride_row == line) and (
            self.images == 1 or self.stride_image == self.height * line
        )


def plan_product(
    operation: str,
    rows: Rows,
    weight: Tensor,
    bias: Tensor,
    out: tuple[int, ...],
    *,
    dtype: torch.dtype,
    gelu: bool = False,
    relu: bool = False,
    residual: Tensor | None = None,
    token_map: Tensor | None = None,
    token_stride: int = 1,
    skip_class: bool = False,
    scales: Scales,
    kept: Kept,
) -> Plan:
    """The plan of a product of `rows` with weight (N, K), whose output has shape `out` and `dtype`, or is `kept`."""
    M, (N, K) = rows.images * rows.height * rows.width, weight.shape
    computed = rows.tensor.dtype != weight.dtype
    integers = weight.dtype == torch.int8
    adding = residual is not None or token_map is not None or (gelu and integers)
    wide: tuple[tuple[int, int, int], ...] = ((128, 192, 8), (128, 256, 8))
    if gelu and integers:  # takes as long as the sums: better two blocks, of which one multiplies
        wide = ()
    elif not (adding or rows.segment):
        wide += ((256, 192, 16),)
    chip = chip_of(weight.device)
    tiles = tiles_module.for_matmul(
        M,
        N,
        K,
        chip,
        element_size=weight.element_size(),
        row_size=rows.tensor.element_size(),
        run=rows.segment or K,
        most=64 if computed and chip.capability in (80, 100) else 128,  # their products in 8 bits read registers
        computed=computed,
        wide=wide,
    )

    def run(tile: Tile) -> Tensor:
        result = torch.empty(out, dtype=kept.dtype or dtype, device=weight.device)
        launch(
            linear_kernel,
            (ceil_div(M, tile.m) * ceil_div(N, tile.n),),
            tile,
            x_ptr=rows.tensor,
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            residual_ptr=bias if residual is None else residual.contiguous(),
            token_map_ptr=bias if token_map is None else token_map.contiguous(),
            addend_scale_ptr=bias if scales.addend is None else scales.addend,
            out_scale_ptr=bias if kept.scale is None else kept.scale,
            out_ptr=result,
            M=M,
            N=N,
            K=K,
            rows_per_image=rows.height * rows.width,
            width=rows.width,
            stride_image=rows.stride_image,
            stride_row=rows.stride_row,
            stride_column=rows.stride_column,
            stride_segment=rows.stride_segment,
            GELU=gelu,
            RESIDUAL=residual is not None,
            RELU=relu,
            TOKEN_STRIDE=0 if token_map is None else token_stride,
            DENSE=rows.dense,
            ADDEND_SCALED=scales.addend is not None,
            SEGMENT=rows.segment,
            WAIT=must_wait(weight, computed),
            SKIP_CLASS=skip_class,
            PRECISION=dot_precision(),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            PIECE=piece_of(tile, adding, integers=32 if integers else None),
            **scales.arguments(instead=bias),
        )
        return result

    parts = {"strided": not rows.dense, "gelu": gelu, "residual": residual is not None, "relu": relu}
    words = [operation, product_type(weight, bias), f"M{M} N{N} K{K}", *filter(parts.get, parts)]
    words += [f"tokens{token_stride}"] * (token_map is not None) + words_of_8_bits(rows.tensor, out=kept)
    return Plan(" ".join(words), unsupported_dtype(weight, scales), tiles, run)


def plan_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gelu: bool = False,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.linear."""
    x = x.contiguous()
    M, K = x.numel() // x.shape[-1], x.shape[-1]
    return plan_product(
        "linear",
        Rows(x, 1, 1, M, M * K, M * K, K),
        weight,
        bias,
        (*x.shape[:-1], weight.shape[0]),
        dtype=bias.dtype if residual is None else torch.promote_types(bias.dtype, residual.dtype),
        gelu=gelu,
        residual=residual,
        scales=Scales(input_scale, weight_scale),
        kept=Kept(out_scale, out_dtype),
    )
