"""Tile choice: plain data and pure functions of the sizes and the chip. Tuned tables (dispatch.py) override it."""

from __future__ import annotations

from typing import NamedTuple

from .chips import Chip


class Tile(NamedTuple):
    """m, n, k: the block of the product that one program computes, and its step along the sum. warps, stages: Triton's
    num_warps and num_stages (software pipelining)."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(size: int, least: int = 16) -> int:
    """The smallest power of two that is at least `size` and `least` (16: the smallest side of a matrix instruction)."""
    return max(least, 1 << (size - 1).bit_length())


def piece_of(tile: Tile, adding: bool, integers: int | None = None) -> int:
    """The columns of a block that are summed, and leave, at a time: a power of two. Blocks beyond 128x128 leave in
    narrow pieces if something is added or pooled on the way out, which takes registers too.

    integers: the columns of such a piece of blocks of 128x128 too, if sums are integers: they become float32 beside
    themselves, and the registers that are left let a second block run
    """
    piece, size = tile.n & -tile.n, tile.m * tile.n
    if adding and integers is not None and size == 128 * 128:
        return min(piece, integers)
    return min(piece, 64) if adding and size > 128 * 128 else piece


# (m, n, warps) of a program's block. The accumulator takes m * n / (32 * warps) registers of a thread's 255.
_SIDES = ((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (128, 32, 4), (64, 32, 4), (128, 16, 4), (64, 16, 4))
_SIDES_FP32 = (
    (64, 64, 8),
    (64, 32, 4),
    (32, 32, 4),
    (64, 16, 4),
)  # no matrix instructions: operands take registers too


def for_matmul(
    M: int,
    N: int,
    K: int,
    chip: Chip,
    *,
    element_size: int,
    row_size: int | None = None,
    run: int | None = None,
    most: int = 128,
    computed: bool,
    wide: tuple[tuple[int, int, int], ...] = (),
) -> tuple[Tile, ...]:
    """Tiles of an (M, K) by (N, K) product of `element_size` bytes, the one with the smallest estimated time first.

    row_size: bytes that one element of the first operand has in memory
    run:      adjacent elements of the sum, which a step along it does not cross
    most:     elements of a step along the sum, at most
    computed: the first operand is computed on its way into the product
    wide:     (m, n, warps) of larger blocks, most of whose registers are for the sums; none for rows whose pieces are
              ragged; 16 warps for Hopper alone
    """
    row_size, run = row_size or element_size, run or K
    sides = _SIDES if element_size <= 2 else _SIDES_FP32
    if element_size <= 2 and chip.reads_shared and not computed and run % 16 == 0:  # operands stay in shared memory
        if element_size == 1:  # sums are kept twice: integers beside float32, FP8's of a step beside all of them
            wide = tuple(side for side in wide if side == (128, 192, 8) and chip.capability == 90)
        elif chip.capability != 90:
            wide = tuple(side for side in wide if side[2] == 8)
        sides = (*((m, n, warps) for m, n, warps in wide if N % n == 0 or n & (n - 1) == 0), *sides)
    least = 32 if element_size == 1 else 16  # the sum's part of a matrix instruction
    tiles = []
    for m, n, warps in sides:
        if (n > 16 and n >= 2 * N) or (m > 64 and m >= 2 * M):
            continue
        # On a multiprocessor of its own twice as many warps issue twice as much, and steps may be half as many. In 8
        # bits, where operands lie in registers, Triton 3.6 spilled some, so that more blocks could run than there are.
        alone = warps == 4 and (element_size == 2 or (element_size == 1 and chip.reads_shared))
        alone = alone and ceil_div(M, m) * ceil_div(N, n) <= chip.sms
        k = min((256 if alone else 128) // element_size, most, power_of_two(run, least))
        while k > least and ceil_div(run, k) * k > ceil_div(run, k // 2) * (k // 2) * 1.2:
            k //= 2
        if alone and n * k * element_size >= 32 * 8 * 4:  # a thread loads no less than 4 bytes at a time, or it waits
            warps = 8
        if element_size == 1 and chip.capability == 90 and m > 16 * warps:
            continue  # each of a warp's two FP8 products would wait for the other's sums
        few = chip.capability == 100 or (chip.capability != 90 and row_size == 4)
        if element_size == 1 and few and n == 128 and warps == 4:
            continue  # a thread's sums and its rows in fp32, or what is rounded, take more registers than there are
        step = k * (m * row_size + n * element_size)
        through = m * k * element_size if computed else 0  # on its way through registers
        most_stages = min(4, ceil_div(run, k) * (K // run) + 1)  # no more than steps, and one
        buffers = min(most_stages, (chip.shared - 2048 - through) // step)
        if chip.reads_shared and buffers == 4 and ceil_div(M, m) * ceil_div(N, n) > chip.sms:
            with_3, with_4 = ((chip.shared + 1024) // (count * step + through + 2048) for count in (3, 4))
            buffers = 3 if with_3 > with_4 == 1 else 4  # a second block hides more than a fourth step
        stages = buffers if chip.reads_shared else buffers + 1
        tiles.append(Tile(m, n, k, warps, min(most_stages, stages)))
    return tuple(sorted(tiles, key=lambda tile: _cycles(M, N, K, tile, chip, element_size, row_size, computed)))


def _cycles(M: int, N: int, K: int, tile: Tile, chip: Chip, element_size: int, row_size: int, computed: bool) -> float:
    """Estimated cycles: of the busiest multiprocessor, whose blocks are bound by products or by loading, or of the L2
    cache.

    2048 multiply-adds (fp16) and 24 bytes from the L2 cache a cycle are an H100's for each multiprocessor, which can
    load 64 if others load less; 8 stored elements a cycle and 400 cycles a block are guesses: no GPU was at hand. In 8
    bits products are twice as fast, but waited for in each step, and some 8 instructions round each element of a first
    operand that is not in 8 bits yet, 128 at a time: guesses too.
    """
    blocks = ceil_div(M, tile.m) * ceil_div(N, tile.n)
    steps, loaded = ceil_div(K, tile.k) * tile.k, tile.m * row_size + tile.n * element_size
    if element_size == 1:
        step = max(tile.m * tile.n / 4096, loaded / 64) + (tile.m * 8 / 128 if computed else 160 / tile.k)
    else:
        step = max(tile.m * tile.n / 2048, loaded / 64)
    alone = steps * step + tile.m * tile.n / 8 + 400
    return max(ceil_div(blocks, chip.sms) * alone, blocks * steps * loaded / (24 * chip.sms))
