"""out[r, y, x] = mean over the samples of cell (y, x) of region r: RoIAlign, from the map whose pixels are of a size
with the region.

A region's cells are side x side. Each has ceil(extent / side) samples along each axis, at even distances, that are
bilinear between the centers of pixels, at half pixels. A sample more than a pixel outside the map counts as zero. One
launch for all maps: a program reads its region, finds the map and sums a block of cells and channels in float32.
Neighboring cells read the same pixels, which the cache holds.

For 1000 regions of 7 x 7 cells and 256 channels in fp16 that is 25 MB out and, of regions of 21 pixels a side, 226 MB
through the L2 cache, 41 us on an H100. A warp runs 130 instructions for each of a cell's 9 samples and 480 beside
them: 82 million, 88 us at 4 a cycle on each multiprocessor. 100 regions of 14 x 14 cells with 4 samples: 21 us.
Estimates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_earlier
from .launch import launch
from .tiles import Tile, ceil_div, power_of_two

LEVELS = 4  # maps that regions are read from
FINEST = tl.constexpr(56.0)  # pixels of a region's side: up to twice that it is read from the finest map
CELLS = 4  # of a program: one for each warp, whose lanes read 16 bytes of a pixel's 256 channels each


@triton.jit
def of_level(level, value0, value1, value2, value3):
    return tl.where(level == 0, value0, tl.where(level == 1, value1, tl.where(level == 2, value2, value3)))


@triton.jit
def samples_of(start, end, cell, size, SIDE: tl.constexpr):
    """Of a region's cells along an axis of a map of `size` pixels: the extent of each; how many samples it has, a
    whole number in float32; the first one that may count, and how many from there on.

    Those are no more than the map has room for, as they are more than half a pixel apart, so that no region takes
    longer, however large. Without an extent, or if it is NaN, there are none.
    """
    extent = tl.div_rn(end - start, SIDE * 1.0)
    count = tl.where(extent > 0, tl.maximum(tl.ceil(extent), 1.0), 1.0)
    first = tl.floor((-1 - start - cell * extent) * (count / extent)) - 2  # one less than it is, for roundings
    first = tl.where(first > 0, first, 0.0)
    room = 2.0 * size + 8
    return extent, count, first, tl.where(extent > 0, tl.where(count < room, count, room), 0.0).to(tl.int32)


@triton.jit
def sample_at(start, extent, cell, sample, count, size):
    """Where a sample lies along an axis: the pixels before and behind it, the latter's share, and whether it counts."""
    place = start + (cell + (sample + 0.5) / count) * extent
    counts = (sample < count) & (place >= -1) & (place <= size)
    place = tl.where(counts, tl.minimum(tl.maximum(place, 0.0), size - 1.0), 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, size - 1), place - low, counts


@triton.jit
def read_regions_kernel(
    map0_ptr,  # in  (H, W, K), the finest; the others each have their own H and W
    map1_ptr,
    map2_ptr,
    map3_ptr,
    regions_ptr,  # in  float32 (R, 4): x1, y1, x2, y2 in pixels of the image
    out_ptr,  # out (R, SIDE, SIDE, K)
    height0,
    height1,
    height2,
    height3,
    width0,
    width1,
    width2,
    width3,
    stride0,  # float32, pixels of the image for each of the map
    stride1,
    stride2,
    stride3,
    K,  # channels
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    SIDE: tl.constexpr,  # cells of a region's side
    BLOCK_CELLS: tl.constexpr,  # cells of a program
    BLOCK_K: tl.constexpr,  # channels of a program
):
    wait_for_earlier(DEPENDENT)
    blocks: tl.constexpr = (SIDE * SIDE + BLOCK_CELLS - 1) // BLOCK_CELLS
    region = (tl.program_id(0) // blocks).to(tl.int64)
    x1 = tl.load(regions_ptr + region * 4)
    y1 = tl.load(regions_ptr + region * 4 + 1)
    x2 = tl.load(regions_ptr + region * 4 + 2)
    y2 = tl.load(regions_ptr + region * 4 + 3)
    size = tl.div_rn(tl.sqrt_rn((x2 - x1) * (y2 - y1)), FINEST) + 1e-6
    # The logarithm to base 2, rounded down; of 8 less its last bit float32 makes 3. NaN has no extent either.
    level = (size >= 2).to(tl.int32) + (size >= 4).to(tl.int32) + (size >= 7.9999995).to(tl.int32)
    pixels = of_level(level, map0_ptr, map1_ptr, map2_ptr, map3_ptr)
    height = of_level(level, height0, height1, height2, height3)
    width = of_level(level, width0, width1, width2, width3)
    stride = of_level(level, stride0, stride1, stride2, stride3)

    cell = tl.program_id(0) % blocks * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    row, column = cell // SIDE, cell % SIDE
    top, left = tl.div_rn(y1, stride) - 0.5, tl.div_rn(x1, stride) - 0.5
    bottom, right = tl.div_rn(y2, stride) - 0.5, tl.div_rn(x2, stride) - 0.5
    down, rows, first_row, row_steps = samples_of(top, bottom, row, height, SIDE)
    across, columns, first_column, column_steps = samples_of(left, right, column, width, SIDE)

    acc = tl.zeros((BLOCK_CELLS, BLOCK_K), tl.float32)
    for i in range(0, row_steps):
        y_low, y_high, y_share, y_counts = sample_at(top, down, row, first_row + i, rows, height)
        upper = pixels + y_low.to(tl.int64) * width * K
        lower = pixels + y_high.to(tl.int64) * width * K
        for j in range(0, column_steps):
            x_low, x_high, x_share, x_counts = sample_at(left, across, column, first_column + j, columns, width)
            before = (x_low.to(tl.int64) * K)[:, None] + k[None, :]
            behind = (x_high.to(tl.int64) * K)[:, None] + k[None, :]
            mask = (y_counts & x_counts)[:, None] & (k < K)[None, :]
            upper_left = tl.load(upper[:, None] + before, mask=mask, other=0.0).to(tl.float32)
            upper_right = tl.load(upper[:, None] + behind, mask=mask, other=0.0).to(tl.float32)
            lower_left = tl.load(lower[:, None] + before, mask=mask, other=0.0).to(tl.float32)
            lower_right = tl.load(lower[:, None] + behind, mask=mask, other=0.0).to(tl.float32)
            acc += ((1 - y_share) * (1 - x_share))[:, None] * upper_left
            acc += ((1 - y_share) * x_share)[:, None] * upper_right
            acc += (y_share * (1 - x_share))[:, None] * lower_left
            acc += (y_share * x_share)[:, None] * lower_right
    acc *= 1 / (rows * columns)
    at = out_ptr + (region * SIDE * SIDE + cell[:, None]) * K + k[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(cell < SIDE * SIDE)[:, None] & (k < K)[None, :])


def read_regions(maps: Sequence[Tensor], regions: Tensor, strides: Sequence[int], side: int) -> Tensor:
    """Each region from that of the finer four maps whose pixels are of a size with it, as operators.read_regions.

    maps:    (K, H, W) each, four or more, of the finest first, in one of fp32, fp16 and bf16; where channels come last
             in memory they are read in place, else copied
    regions: (R, 4), x1 y1 x2 y2 in pixels of the image. Values that are not finite make a region of zeros, and those
             beyond 2^20 pixels of its map one of rounded samples; both end, and stay within the maps
    strides: of each map, pixels of the image for each of its own
    side:    cells of a region's side

    -> (R, K, side, side) in the maps' dtype, channels last in memory
    """
    finer = [feature_map.permute(1, 2, 0).contiguous() for feature_map in maps[:LEVELS]]
    R, K = len(regions), finer[0].shape[2]
    out = torch.empty((R, side, side, K), dtype=finer[0].dtype, device=regions.device)
    tile = Tile(CELLS, 1, min(256, power_of_two(K)), 4, 1)
    if R:
        of_levels = {f"map{level}_ptr": pixels for level, pixels in enumerate(finer)}
        launch(
            read_regions_kernel,
            (R * ceil_div(side * side, tile.m), ceil_div(K, tile.k)),
            tile,
            **of_levels,
            regions_ptr=regions.float().contiguous(),
            out_ptr=out,
            **{f"height{level}": pixels.shape[0] for level, pixels in enumerate(finer)},
            **{f"width{level}": pixels.shape[1] for level, pixels in enumerate(finer)},
            **{f"stride{level}": float(stride) for level, stride in enumerate(strides[:LEVELS])},
            K=K,
            SIDE=side,
            BLOCK_CELLS=tile.m,
            BLOCK_K=tile.k,
        )
    return out.permute(0, 3, 1, 2)
