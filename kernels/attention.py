"""out[b, t, h] = sum over s of softmax(q[b, t, h] . k[b, s, h] * scale) v[b, s, h], for every image b, head h, query t.

qkv: (B, T, 3C), ordered q, k, v, then head, read in place; out: (B, T, C), C = heads * D.

Up to 256 tokens a head's keys and values fit on the chip: `one_pass_kernel` holds whole rows of scores, so that their
softmax is a single pass. Longer sequences, float32 products and large heads take `streaming_kernel`, which walks along
the keys and scales down what it has summed so far whenever it meets a larger score (Milakov and Gimelshein, arXiv
1805.02867). Scores are in float32 and in units of log 2, because 2^x is one instruction.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import as_read
from .chips import Chip, chip_of
from .dependent import wait_for_earlier
from .launch import Kept, Plan, dot_precision, launch, product_type, unsupported_dtype, words_of_8_bits
from .tiles import Tile, ceil_div, power_of_two


@triton.jit
def one_pass_kernel(
    qkv_ptr,  # in  (B, T, 3C)
    out_scale_ptr,  # in  scalar, if out is in 8 bits
    out_ptr,  # out (B, T, C)
    T,  # tokens
    num_heads,
    scale,  # of the scores, times log2(e); above 0
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    D: tl.constexpr,  # channels of a head, exact
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_T: tl.constexpr,  # queries at a time
    BLOCK_KEYS: tl.constexpr,  # keys at a time: all T of them
    BLOCK_D: tl.constexpr,  # power of two >= D
    QUERY_BLOCKS: tl.constexpr,  # blocks of queries that a program takes one after another
):
    q_head, out_head, block = _find(qkv_ptr, out_ptr, tl.cdiv(T, QUERY_BLOCKS * BLOCK_T), T, num_heads, D)
    C = num_heads * D
    s = tl.arange(0, BLOCK_KEYS)
    wait_for_earlier(DEPENDENT)
    k = _load(q_head + C, s, 3 * C, T, D, BLOCK_D)
    v = _load(q_head + 2 * C, s, 3 * C, T, D, BLOCK_D)
    for i in range(QUERY_BLOCKS):
        t = (block * QUERY_BLOCKS + i) * BLOCK_T + tl.arange(0, BLOCK_T)
        q = _load(q_head, t, 3 * C, T, D, BLOCK_D)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        scores = tl.where(s[None, :] < T, scores, float("-inf"))
        peak = tl.max(scores, 1) * scale
        p = tl.exp2(scores * scale - peak[:, None])
        total = tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        _store(out_head, out_scale_ptr, t, C, out * (1 / total)[:, None], T, D, BLOCK_D)


@triton.jit
def streaming_kernel(
    qkv_ptr,  # in  (B, T, 3C)
    out_scale_ptr,  # in  scalar, if out is in 8 bits
    out_ptr,  # out (B, T, C)
    T,  # tokens
    num_heads,
    scale,  # of the scores, times log2(e); above 0
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    D: tl.constexpr,  # channels of a head, exact
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    BLOCK_T: tl.constexpr,  # queries of a program
    BLOCK_KEYS: tl.constexpr,  # keys at a time
    BLOCK_D: tl.constexpr,  # power of two >= D
):
    q_head, out_head, block = _find(qkv_ptr, out_ptr, tl.cdiv(T, BLOCK_T), T, num_heads, D)
    C = num_heads * D
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    wait_for_earlier(DEPENDENT)
    q = _load(q_head, t, 3 * C, T, D, BLOCK_D)
    peak = tl.full((BLOCK_T,), float("-inf"), tl.float32)  # the largest score so far; what follows is relative to it
    total = tl.zeros((BLOCK_T,), tl.float32)
    out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, T, BLOCK_KEYS):
        s = start + tl.arange(0, BLOCK_KEYS)
        k = _load(q_head + C, s, 3 * C, T, D, BLOCK_D)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        scores = tl.where(s[None, :] < T, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(peak - higher)
        peak = higher
        total = total * shrink + tl.sum(p, 1)
        v = _load(q_head + 2 * C, s, 3 * C, T, D, BLOCK_D)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    _store(out_head, out_scale_ptr, t, C, out * (1 / total)[:, None], T, D, BLOCK_D)


@triton.jit
def _find(qkv_ptr, out_ptr, blocks, T, num_heads, D: tl.constexpr):
    """This program's head, as pointers to its q and out of token 0, and its block of `blocks`.

    Blocks of one head run next to each other, so that they share its keys and values in the cache.
    """
    head = tl.program_id(0) // blocks
    first_token = (head // num_heads).to(tl.int64) * T
    channel = head % num_heads * D
    C = num_heads * D
    return qkv_ptr + first_token * (3 * C) + channel, out_ptr + first_token * C + channel, tl.program_id(0) % blocks


@triton.jit
def _load(head_ptr, t, stride, T, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows t of a head, `stride` elements apart; zeros beyond T tokens and D channels."""
    d = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(head_ptr + t[:, None] * stride + d, mask=(t[:, None] < T) & (d < D), other=0.0)


@triton.jit
def _store(head_ptr, scale_ptr, t, stride, rows, T, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The reverse of `_load`, as what reads it takes it."""
    d = tl.arange(0, BLOCK_D)[None, :]
    tl.store(
        head_ptr + t[:, None] * stride + d,
        as_read(rows, scale_ptr, head_ptr.dtype.element_ty),
        mask=(t[:, None] < T) & (d < D),
    )


LARGEST_HEAD = 128
ONE_PASS = 256  # tokens


def plan_attention(
    qkv: Tensor,
    num_heads: int,
    scale: float,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    qkv_scale: Tensor | None = None,
) -> Plan:
    """Arguments and result: functional.attention.

    Tiles: m queries and n keys at a time, k blocks of queries to a program. One pass if n covers all keys, else k is 1.
    """
    B, T, C3 = qkv.shape
    C = C3 // 3
    D = C // num_heads
    unsupported = unsupported_dtype(qkv)
    if qkv_scale is not None:
        unsupported = "the attention kernel reads no 8 bits: to convert them takes longer than to read twice as many"
    elif D > LARGEST_HEAD:
        unsupported = f"the attention kernel takes heads of up to {LARGEST_HEAD} channels, these have {D}"
    elif scale <= 0:
        unsupported = f"the attention kernel takes scales above 0, got {scale}"

    def run(tile: Tile) -> Tensor:
        out = torch.empty((B, T, C), dtype=out_dtype or qkv.dtype, device=qkv.device)
        one_pass = tile.n >= T
        launch(
            one_pass_kernel if one_pass else streaming_kernel,
            (B * num_heads * ceil_div(T, tile.m * tile.k),),
            tile,
            qkv_ptr=qkv.contiguous(),
            out_scale_ptr=qkv if out_scale is None else out_scale,
            out_ptr=out,
            T=T,
            num_heads=num_heads,
            scale=scale * math.log2(math.e),
            D=D,
            PRECISION=dot_precision(),
            BLOCK_T=tile.m,
            BLOCK_KEYS=tile.n,
            BLOCK_D=power_of_two(D),
            **({"QUERY_BLOCKS": tile.k} if one_pass else {}),
        )
        return out

    words = words_of_8_bits(out=Kept(out_scale, out_dtype))
    return Plan(
        " ".join([f"attention {product_type(qkv)} B{B} T{T} H{num_heads} D{D}", *words]),
        unsupported,
        attention_tiles(B * num_heads, T, power_of_two(D), qkv.element_size(), chip_of(qkv.device), out_dtype),
        run,
    )


def attention_tiles(
    heads: int, T: int, D: int, element_size: int, chip: Chip, stored: torch.dtype | None = None
) -> tuple[Tile, ...]:
    """The tiles of plan_attention for `heads` heads, those of all images, the rule's choice first.

    stored: the type of a result in 8 bits

    The rule: the most work to a program, so that less is read twice, that leaves every multiprocessor two programs, of
    which one computes while the other loads; or else the least.
    """
    keys = power_of_two(T)
    others: list[Tile] = []
    if element_size > 2:  # no matrix instructions: products take many registers
        order = [Tile(32, 16, 1, 4, 2), Tile(16, 16, 1, 4, 2)]
    elif D > 64:
        order = [Tile(64, 32, 1, 4, 2)]
    elif T > ONE_PASS:
        order = [Tile(128, 64, 1, 8, 2), Tile(64, 64, 1, 4, 2)]
        others = [Tile(128, 128, 1, 8, 2)] if chip.reads_shared else []
    else:
        warps = 8 if stored and chip.capability == 100 else 4  # rounding takes more registers than 4 have left there
        several = [Tile(64, keys, blocks, warps, 1) for blocks in (4, 2, 1)]
        streaming = [Tile(64, 64, 1, 4, 2)]
        order = several if chip.reads_shared else streaming
        order += [Tile(32, keys, 1, 4, 1), Tile(16, keys, 1, 8 if chip.reads_shared else 4, 1)]
        others = [Tile(16, keys, 1, 4, 1), Tile(128, 64, 1, 8, 2), *streaming] if chip.reads_shared else []
    order = [tile for tile in order if tile.m * tile.k < 2 * T] or order[-1:]
    choice = next((tile for tile in order if heads * ceil_div(T, tile.m * tile.k) >= 2 * chip.sms), order[-1])
    return tuple(dict.fromkeys([choice, *order, *(tile for tile in others if tile.m < 2 * T)]))
