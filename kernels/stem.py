"""images (B, channels, H, W) -> (B, H', W', K): 7x7 convolution of stride 2 and padding 3, bias, ReLU, 3x3 max-pool of
stride 2 and padding 1, zeros to a multiple of pixels.

Two launches. `pack_kernel` copies the images, as the numbers that are multiplied and within the convolution's border of
zeros, as squares: 2 x 2 pixels of 4 channels (the missing ones are 0), 16 adjacent elements. The convolution then takes
4 x 4 squares at stride 1, four times 64 adjacent elements: whole vectors and no masks, for 256 products of which 147
count.

`stem_kernel` keeps the convolution's map, four times the size of the result, in registers. A program walks down a strip
of the map. A line of the result is the maximum of three lines of the map; the last is the first of the next three and
kept for them, so that only a strip's first line is computed twice. Of the three columns of a pixel's window a program
computes two, 2x and 2x + 1: 2x - 1 is its neighbor's. The first pixel of a program is there for its neighbor only.

So nearly each element of the map is computed once. Nine products a pixel, one a window position, would need no
neighbors, but 2.25 times the arithmetic and reading: 240 us for 128 images of 224 x 224 on an H100 at 500 TFLOP/s.
These 26e9 multiply-adds take 105 us at that rate (83 us at the least: a product of 64 columns by 64 channels reads as
much shared memory as there is bandwidth), packing 44 us (131 MB at 3 TB/s). These are estimates, of
16 bits; 8 bits halve what is packed.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._math import as_read, inverse_of, maximum, relu, scaled, stored, zero_sums
from .chips import Chip, chip_of
from .dependent import wait_for_earlier
from .launch import (
    Kept,
    Plan,
    Scales,
    dot_precision,
    launch,
    prepared,
    product_type,
    unsupported_dtype,
    words_of_8_bits,
)
from .tiles import Tile, ceil_div, power_of_two

SQUARE = 16  # elements of a square: 2 lines, 2 columns, 4 channels
TAPS = 4 * SQUARE  # elements of a window's line of squares


@triton.jit
def pack_kernel(
    images_ptr,  # in  (B, channels, H, W), any strides
    input_scale_ptr,  # in  scalar, if SCALED
    packed_ptr,  # out (B, lines, squares, SQUARE)
    channels,  # of images, at most 4
    H,  # pixels
    W,
    lines,  # of squares
    squares,  # in a line
    stride_b,  # elements of images from image to image
    stride_c,  # from channel to channel
    stride_h,  # from line to line
    stride_w,  # from pixel to pixel
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    SCALED: tl.constexpr,  # packed is in 8 bits
    SQUARE: tl.constexpr,  # elements of a square
    BLOCK: tl.constexpr,  # squares
):
    line = tl.program_id(0).to(tl.int64)
    image = line // lines
    square = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    part = tl.arange(0, SQUARE)[None, :]
    y = (line % lines).to(tl.int32) * 2 - 3 + part // 8
    x = square * 2 - 3 + part // 4 % 2
    c = part % 4
    inside = (c < channels) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    pixels = images_ptr + image * stride_b + (c * stride_c + y * stride_h + x * stride_w)
    wait_for_earlier(DEPENDENT)
    values = tl.load(pixels, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        values = stored(values, inverse_of(input_scale_ptr), packed_ptr.dtype.element_ty)
    packed = packed_ptr + line * squares * SQUARE + (square * SQUARE + part)
    tl.store(packed, values.to(packed_ptr.dtype.element_ty), mask=square < squares)


@triton.jit
def stem_kernel(
    packed_ptr,  # in  (B, map_height + 3, map_width + 3, SQUARE), by pack_kernel
    weight_ptr,  # in  (4, K, TAPS), by _pack_weight
    bias_ptr,  # in  (K,)
    input_scale_ptr,  # in  scalar, if SCALED
    weight_scale_ptr,  # in  (K,), if SCALED
    out_scale_ptr,  # in  scalar, if out is in 8 bits
    out_ptr,  # out (B, height, width, K)
    pixels,  # B * width: a line of out, of all images
    height,  # of out
    width,
    map_height,  # of the convolution's map
    map_width,
    K,  # channels of out
    rows,  # lines of out that a program computes
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    SCALED: tl.constexpr,  # packed and weight are in 8 bits
    SQUARE: tl.constexpr,  # elements of a square
    TAPS: tl.constexpr,  # elements of 4 squares
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_N: tl.constexpr,  # columns of the map: two of each pixel of out
    BLOCK_K: tl.constexpr,
):
    strips = tl.cdiv(height, rows)
    first_row = tl.program_id(0) % strips * rows
    steps = 2 * tl.minimum(rows, height - first_row) + 1  # lines of the map
    first_pixel = tl.program_id(0) // strips * (BLOCK_N // 2 - 1) - 1
    first_image = tl.maximum(first_pixel, 0) // width

    # Columns outside the map become the nearest one inside, which is in the same window; so do lines.
    # The columns of a pixel lie 8 apart: matrix instructions give such a pair to one thread.
    n = tl.arange(0, BLOCK_N)
    pixel = tl.minimum(tl.maximum(first_pixel + n // 16 * 8 + n % 8, 0), pixels - 1)
    x = tl.minimum(pixel % width * 2 + n // 8 % 2, map_width - 1)
    stride_line = (map_width + 3) * SQUARE
    stride_image = (map_height + 3) * stride_line
    tap = tl.arange(0, TAPS)
    window = ((pixel // width - first_image) * stride_image + x * SQUARE)[:, None] + tap[None, :]
    packed_ptr += first_image.to(tl.int64) * stride_image

    k = tl.arange(0, BLOCK_K)
    wait_for_earlier(DEPENDENT)
    weights: tl.tuple = ()
    for i in tl.static_range(4):
        weight = weight_ptr + (i * K + k)[None, :] * TAPS + tap[:, None]
        weights += (tl.load(weight, mask=(k < K)[None, :], other=0.0),)

    neighbor = tl.maximum(tl.arange(0, BLOCK_N // 2) - 1, 0)[:, None] + tl.zeros((1, BLOCK_K), tl.int32)
    out_pixel = first_pixel + tl.arange(0, BLOCK_N // 2)
    column = out_pixel % width
    out = (((out_pixel // width - first_image) * height * width + column) * K)[:, None] + k[None, :]
    out_mask = ((out_pixel > first_pixel) & (out_pixel < pixels))[:, None] & (k < K)[None, :]
    out_ptr += first_image.to(tl.int64) * height * width * K

    highest = tl.full((BLOCK_N, BLOCK_K), float("-inf"), tl.float32)
    for step in range(steps):
        y = tl.minimum(tl.maximum(2 * first_row - 1 + step, 0), map_height - 1)
        sums = zero_sums(BLOCK_N, BLOCK_K, weight_ptr.dtype.element_ty)
        for i in tl.static_range(4):
            squares = tl.load(packed_ptr + (y + i) * stride_line + window)
            # Not add_product: Hopper would wait for each of these products in FP8. Few enough are added in its 14 bits.
            sums = tl.dot(squares, weights[i], sums, input_precision=PRECISION, out_dtype=sums.dtype)
        line = scaled(sums, input_scale_ptr, weight_scale_ptr, k, K) if SCALED else sums
        highest = maximum(highest, line)
        if step % 2 == 0:
            if step > 0:
                row = first_row + step // 2 - 1
                bias = tl.load(bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)
                even, odd = _columns(as_read(relu(highest + bias[None, :]), out_scale_ptr, out_ptr.dtype.element_ty))
                left = tl.gather(odd, neighbor, 0).to(tl.float32)
                pooled = maximum(even.to(tl.float32), odd.to(tl.float32))
                pooled = tl.where((column > 0)[:, None], maximum(pooled, left), pooled)
                in_map = (2 * row < map_height) & (2 * column < map_width)
                pooled = tl.where(in_map[:, None], pooled, 0.0)
                tl.store(out_ptr + row * width * K + out, pooled.to(out_ptr.dtype.element_ty), mask=out_mask)
            highest = line


@triton.jit
def _columns(lines):
    """The even and the odd columns of pixels, which lie 8 apart: (N, K) -> (N / 2, K), (N / 2, K)."""
    pairs = lines.reshape(lines.shape[0] // 16, 2, 8, lines.shape[1]).permute(0, 2, 3, 1)
    even, odd = pairs.split()
    return even.reshape(lines.shape[0] // 2, lines.shape[1]), odd.reshape(lines.shape[0] // 2, lines.shape[1])


def plan_stem(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiple: int,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.stem."""
    scales = Scales(input_scale, weight_scale)
    B, channels, H, W = images.shape
    K = weight.shape[0]
    map_height, map_width = ceil_div(H, 2), ceil_div(W, 2)
    height, width = (ceil_div(ceil_div(size, 2), multiple) * multiple for size in (map_height, map_width))

    def run(tile: Tile) -> Tensor:
        packed = torch.empty((B, map_height + 3, map_width + 3, SQUARE), dtype=weight.dtype, device=weight.device)
        block = min(128, power_of_two(map_width + 3))
        launch(
            pack_kernel,
            (B * (map_height + 3), ceil_div(map_width + 3, block)),
            Tile(0, block, 0, 4, 1),
            images_ptr=images,
            input_scale_ptr=bias if input_scale is None else input_scale,
            packed_ptr=packed,
            channels=channels,
            H=H,
            W=W,
            lines=map_height + 3,
            squares=map_width + 3,
            stride_b=images.stride(0),
            stride_c=images.stride(1),
            stride_h=images.stride(2),
            stride_w=images.stride(3),
            SCALED=input_scale is not None,
            SQUARE=SQUARE,
            BLOCK=block,
        )
        out = torch.empty((B, height, width, K), dtype=out_dtype or bias.dtype, device=weight.device)
        launch(
            stem_kernel,
            (ceil_div(B * width, tile.n // 2 - 1) * ceil_div(height, tile.m),),
            tile,
            packed_ptr=packed,
            weight_ptr=prepared(weight, _pack_weight),
            bias_ptr=bias.contiguous(),
            out_scale_ptr=bias if out_scale is None else out_scale,
            out_ptr=out,
            pixels=B * width,
            height=height,
            width=width,
            map_height=map_height,
            map_width=map_width,
            K=K,
            rows=tile.m,
            SQUARE=SQUARE,
            TAPS=TAPS,
            PRECISION=dot_precision(),
            BLOCK_N=tile.n,
            BLOCK_K=power_of_two(K),
            **scales.arguments(instead=bias),
        )
        return out

    chip = chip_of(weight.device)
    tiles = _tiles(B * width, height, weight.element_size(), bias.element_size(), chip)
    unsupported = unsupported_dtype(weight, scales) or _unsupported_sizes(images, height, width, K)
    if not (tiles or unsupported):
        unsupported = f"no tile fits the {chip.shared} bytes of shared memory of {chip.name}"
    words = ["stem", product_type(weight, bias), f"B{B} H{H} W{W} K{K} multiple{multiple}"]
    words += words_of_8_bits(out=Kept(out_scale, out_dtype))
    return Plan(" ".join(words), unsupported, tiles, run)


def _pack_weight(weight: Tensor) -> Tensor:
    """(K, channels, 7, 7) -> (4, K, TAPS): by line of squares, each in the order of its elements."""
    K, channels = weight.shape[:2]
    weight = F.pad(weight, (0, 1, 0, 1, 0, 4 - channels)).view(K, 4, 4, 2, 4, 2)  # K, channel, (line, y), (square, x)
    return weight.permute(2, 0, 4, 3, 5, 1).reshape(4, K, TAPS).contiguous()


def _unsupported_sizes(images: Tensor, height: int, width: int, K: int) -> str | None:
    """Why the kernels cannot take these sizes, or None: they count elements within an image in 32 bits."""
    channels, H, W = images.shape[1:]
    if channels > 4 or K > 64:
        return f"the stem's kernels take at most 4 channels to at most 64, not {channels} to {K}"
    image = sum((size - 1) * stride for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True))
    images_of_program = 64 // width + 2
    packed = images_of_program * (ceil_div(H, 2) + 3) * (ceil_div(W, 2) + 3) * SQUARE
    if max(image, packed, images_of_program * height * width * K) >= 2**31:
        return f"the stem's kernels cannot count the elements of images of {H} x {W} pixels"
    return None


# By the size of an element: columns, warps and stages that fit the registers, and the relative time of a line.
COLUMNS = {
    1: ((64, 4, 2, 60), (32, 4, 3, 36), (16, 4, 3, 24), (128, 8, 2, 128)),
    2: ((64, 4, 2, 80), (32, 4, 3, 48), (16, 4, 3, 32), (128, 8, 2, 170)),
    4: ((32, 8, 2, 48), (16, 4, 2, 32)),
}


@cache
def _tiles(pixels: int, height: int, element_size: int, out_size: int, chip: Chip) -> tuple[Tile, ...]:
    """Tiles of m lines of out by n columns of the map (k is 0: unused), the one with the smallest estimated time first.

    The estimate is that of the busiest multiprocessor. A program computes 2 m + 1 lines and its start takes the time of
    two more; one program alone, which waits for its loads and its products in turn, takes 1.3 times as long.
    """
    heights = {ceil_div(height, strips) for strips in range(1, height + 1)}
    tiles = []
    for n, warps, stages, line in COLUMNS.get(element_size, ()):
        # In FP8 a narrow tile takes more on Hopper and Blackwell, which have several times as much as it needs.
        lines_held = stages if chip.capability == 90 else stages - 1  # Hopper's products read one as the next arrives
        if (64 + lines_held * n) * 4 * TAPS * element_size + 64 * n * out_size > chip.shared:
            continue
        of_this_width = []
        for m in heights:
            programs = ceil_div(pixels, n // 2 - 1) * ceil_div(height, m)
            time = max(ceil_div(programs, chip.sms), 1.3) * (2 * m + 3) * line
            of_this_width.append((time, Tile(m, n, 0, warps, stages)))
        tiles += sorted(of_this_width)[:2]
    return tuple(tile for _, tile in sorted(tiles))
