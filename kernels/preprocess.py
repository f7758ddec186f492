"""out[b, y, x, c] = values[c, level]: the level of pixel (y, x) in the window of picture b, resized as Pillow resizes.

A resize is two passes, each along one axis, each rounded to 8 bits; which is first differs from picture to picture.
A pass is a sum of a few source pixels with integer weights of 2^-22 (csrc/coefficients.cpp), in 32-bit integers:
level = clip((sum_t pixel[start + t] * weight[t] + 2^21) >> 22, 0, 255). It is exact on any machine.

Two launches of one kernel: the first pass of all pictures writes levels, the second reads those and writes the values.
Each element is computed on its own; neighbors read the same bytes, which the cache holds. The pictures lie one behind
the other in one buffer, and `Pass` says for each where. For 128 photos of 500 x 375 the passes take 335 rows of 224 and
224 of 224 pixels, 7 products each: 1e9 multiply-adds, and 96 MB in, 29 MB through the cache and 77 MB out in float32.
At 3 TB/s that is 60 us; an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_earlier
from .launch import launch
from .tiles import Tile, ceil_div

TILE = Tile(512, 1, 1, 4, 1)  # elements of a program


class Pass(NamedTuple):
    """One pass over one picture. Its result has `rows` rows of `columns` pixels of 3 channels without gaps."""

    source: int  # byte of the source at which the pass's first row and column begin
    source_row: int  # bytes from row to row
    source_pixel: int  # bytes from pixel to pixel
    rows: int
    columns: int
    out: int  # element of the result's first pixel
    taps: int  # source pixels that make a pixel; weights of 0 fill up
    table: int  # entry of the tables: a start for each pixel along the axis, then a row of weights for each tap
    vertical: bool


@triton.jit
def pass_kernel(
    source_ptr,  # in  uint8, the pictures or what the first pass made of them
    passes_ptr,  # in  int64 (B, FIELDS), a Pass each
    tables_ptr,  # in  int32, starts and weights
    values_ptr,  # in  (3, 256) of out's type, if NORMALIZE
    out_ptr,  # out the results, one behind the other
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    FIELDS: tl.constexpr,  # of a Pass
    PRECISION_BITS: tl.constexpr,  # weights are multiples of 2 to the minus this
    NORMALIZE: tl.constexpr,  # write values, not levels
    BLOCK: tl.constexpr,  # elements of a program
):
    wait_for_earlier(DEPENDENT)
    fields = passes_ptr + tl.program_id(1) * FIELDS
    source = tl.load(fields)
    source_row = tl.load(fields + 1)
    source_pixel = tl.load(fields + 2)
    rows = tl.load(fields + 3)
    columns = tl.load(fields + 4)
    out = tl.load(fields + 5)
    taps = tl.load(fields + 6).to(tl.int32)
    table = tl.load(fields + 7)
    vertical = tl.load(fields + 8) != 0

    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < rows * columns * 3
    channel = element % 3
    x = element // 3 % columns
    y = element // (3 * columns)
    along = tl.where(vertical, y, x)
    length = tl.where(vertical, rows, columns)
    step = tl.where(vertical, source_row, source_pixel)
    start = tl.load(tables_ptr + table + along, mask=inside, other=0)
    line = tl.where(vertical, x * source_pixel, y * source_row)
    pixels = source_ptr + source + line + start * step + channel
    weights = tables_ptr + table + length + along

    acc = tl.full((BLOCK,), 1 << (PRECISION_BITS - 1), tl.int32)
    for t in range(0, taps):
        weight = tl.load(weights + t * length, mask=inside, other=0)
        pixel = tl.load(pixels + t * step, mask=weight != 0, other=0)  # weights of 0 may lie outside the picture
        acc += pixel.to(tl.int32) * weight
    level = tl.minimum(tl.maximum(acc >> PRECISION_BITS, 0), 255)
    out_ptr += out
    if NORMALIZE:
        tl.store(out_ptr + element, tl.load(values_ptr + channel * 256 + level, mask=inside), mask=inside)
    else:
        tl.store(out_ptr + element, level.to(tl.uint8), mask=inside)


def launch_preprocess(
    pixels: Tensor,
    first: Sequence[Pass],
    second: Sequence[Pass],
    tables: Tensor,
    values: Tensor | None,
    precision_bits: int,
) -> Tensor:
    """Both passes over B pictures, with results of one size: (B, size, size, 3), of `values`'s type or uint8.

    pixels: uint8, all pictures. first, second: B passes each, over `pixels` and over the result of the first. tables:
    int32. values: (3, 256), what levels become; None: they stay. precision_bits: of the weights.
    """
    B, rows, columns = len(second), second[0].rows, second[0].columns
    middle = torch.empty(max(_end(one) for one in first), dtype=torch.uint8, device=pixels.device)
    dtype = torch.uint8 if values is None else values.dtype
    result = torch.empty((B, rows, columns, 3), dtype=dtype, device=pixels.device)
    runs = (pixels, first, middle, False), (middle, second, result, values is not None)
    for source, passes, out, normalize in runs:
        launch(
            pass_kernel,
            (ceil_div(max(one.rows * one.columns * 3 for one in passes), TILE.m), B),
            TILE,
            source_ptr=source,
            passes_ptr=torch.tensor(passes, dtype=torch.int64).to(pixels.device),
            tables_ptr=tables,
            values_ptr=values if normalize else tables,
            out_ptr=out,
            FIELDS=len(Pass._fields),
            PRECISION_BITS=precision_bits,
            NORMALIZE=normalize,
            BLOCK=TILE.m,
        )
    return result


def _end(one: Pass) -> int:
    return one.out + one.rows * one.columns * 3
