"""kept = non-maximum suppression: from the best on, each box removes those of its group that overlap it too much.

Two launches. The first writes for each box a bit of each one behind it: whether it would remove it. Only the blocks
at and above the diagonal are written. The second is one program, which takes 32 boxes at a time in order: it settles
which of them are kept, and gathers what those remove.

The bits of N boxes take N * N / 8 bytes: of 5000 boxes 3 MB, of 20,000 50 MB. For 5000 the first launch computes 12.5
million overlaps of some 45 instructions, 20 us on an H100; the second waits for memory twice in each of 157 steps, and
for some reductions between its threads: 1 us a step. Estimates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_earlier
from .launch import launch
from .tiles import Tile, ceil_div, power_of_two

BITS = 32  # of a word
OVERLAPS = Tile(64, BITS, 1, 4, 1)  # m boxes and a word of those that they may remove
GATHERED = 8192  # words that the second launch has on their way at a time


@triton.jit
def box_at(boxes_ptr, index, N):
    """x1, y1, x2, y2 and the area of boxes; zeros behind the last one."""
    x1 = tl.load(boxes_ptr + index * 4, mask=index < N, other=0.0)
    y1 = tl.load(boxes_ptr + index * 4 + 1, mask=index < N, other=0.0)
    x2 = tl.load(boxes_ptr + index * 4 + 2, mask=index < N, other=0.0)
    y2 = tl.load(boxes_ptr + index * 4 + 3, mask=index < N, other=0.0)
    return x1, y1, x2, y2, product(x2 - x1, y2 - y1)


@triton.jit
def product(x, y):
    """x y, rounded. A plain product may be fused into the sum that follows it, which then rounds once, not twice: two
    boxes whose overlap is at the threshold would be judged other than by PyTorch."""
    return tl.fma(x, y, 0.0)


@triton.jit
def removes_kernel(
    boxes_ptr,  # in  float32 (N, 4), by falling score
    groups_ptr,  # in  (N,)
    removes_ptr,  # out int32 (N, words); a bit for each box that this one would remove, and any behind the last box
    N,  # boxes
    words,  # of a row: ceil(N / 32)
    threshold,  # of overlaps that remove
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    BLOCK_M: tl.constexpr,  # boxes of a program
    BITS: tl.constexpr,  # of a word
):
    wait_for_earlier(DEPENDENT)
    word = tl.program_id(0)
    if (word + 1) * BITS > tl.program_id(1) * BLOCK_M:
        i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        j = word * BITS + tl.arange(0, BITS)
        left, top, right, bottom, area = box_at(boxes_ptr, i[:, None], N)
        other_left, other_top, other_right, other_bottom, other_area = box_at(boxes_ptr, j[None, :], N)
        width = tl.maximum(tl.minimum(right, other_right) - tl.maximum(left, other_left), 0.0)
        height = tl.maximum(tl.minimum(bottom, other_bottom) - tl.maximum(top, other_top), 0.0)
        shared = product(width, height)
        overlap = tl.div_rn(shared, area + other_area - shared)
        group = tl.load(groups_ptr + i, mask=i < N)
        other_group = tl.load(groups_ptr + j, mask=j < N)
        removes = (overlap > threshold) & (group[:, None] == other_group[None, :]) & (i[:, None] < j[None, :])
        bits = tl.sum(removes.to(tl.int32) << tl.arange(0, BITS)[None, :], 1)
        tl.store(removes_ptr + i.to(tl.int64) * words + word, bits, mask=i < N)


@triton.jit
def kept_kernel(
    removes_ptr,  # in  int32 (N, words), of removes_kernel
    kept_ptr,  # out uint8 (N,): 1 or 0
    N,  # boxes
    words,  # of a row: ceil(N / 32)
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    BITS: tl.constexpr,  # of a word
    BLOCK_WORDS: tl.constexpr,  # at least `words`
    BLOCK_ROWS: tl.constexpr,  # rows that are gathered at a time, a divisor of BITS
):
    wait_for_earlier(DEPENDENT)
    w = tl.arange(0, BLOCK_WORDS)
    bit = tl.arange(0, BITS)
    removed = tl.zeros((BLOCK_WORDS,), tl.int32)  # of all boxes, by those so far
    for word in range(0, words):
        i = word * BITS + bit
        among = tl.load(removes_ptr + i.to(tl.int64) * words + word, mask=i < N, other=0)  # whom they remove of these
        before = tl.sum(tl.where(w == word, removed, 0), 0)
        gone = before
        settled = False
        while not settled:  # each round settles at least one box more, as none removes one before it
            again = before | tl.reduce_or(tl.where((gone >> bit) & 1 == 0, among, 0), 0)
            settled = again == gone
            gone = again
        tl.store(kept_ptr + i, (((gone >> bit) & 1) ^ 1).to(tl.uint8), mask=i < N)
        for first in range(0, BITS, BLOCK_ROWS):
            row = first + tl.arange(0, BLOCK_ROWS)
            at = removes_ptr + ((word * BITS + row).to(tl.int64) * words)[:, None] + w[None, :]
            behind = (w > word) & (w < words)  # none of the last word, whose rows may be fewer
            rows = tl.load(at, mask=((gone >> row) & 1 == 0)[:, None] & behind[None, :], other=0)
            removed |= tl.reduce_or(rows, 0)


def kept_of(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which boxes, ordered by falling score, are kept: boxes float32 (N, 4), groups (N,) -> bool (N,)."""
    N = len(boxes)
    words = ceil_div(N, BITS)
    removes = torch.empty((N, words), dtype=torch.int32, device=boxes.device)
    kept = torch.empty(N, dtype=torch.uint8, device=boxes.device)
    if N:
        launch(
            removes_kernel,
            (words, ceil_div(N, OVERLAPS.m)),
            OVERLAPS,
            boxes_ptr=boxes.contiguous(),
            groups_ptr=groups.contiguous(),
            removes_ptr=removes,
            N=N,
            words=words,
            threshold=threshold,
            BLOCK_M=OVERLAPS.m,
            BITS=BITS,
        )
        columns = power_of_two(words)
        rows = max(1, min(BITS, GATHERED // columns))
        launch(
            kept_kernel,
            (1,),
            Tile(rows, columns, 1, 4 if columns <= 256 else 8, 1),
            removes_ptr=removes,
            kept_ptr=kept,
            N=N,
            words=words,
            BITS=BITS,
            BLOCK_WORDS=columns,
            BLOCK_ROWS=rows,
        )
    return kept.view(torch.bool)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The indices of the boxes that are kept, by falling score, as operators.nms: from the best on, each one removes
    those of its group that overlap it by more than `threshold`. In float32, as PyTorch rounds it.

    boxes (N, 4), scores (N,), groups (N,), whole numbers -> int64 (M,)

    The host waits for M. Raises torch.OutOfMemoryError where N * N / 8 bytes are not free.
    """
    order = scores.detach().float().argsort(descending=True, stable=True)
    return order[kept_of(boxes.detach().float()[order], groups[order], threshold)]
