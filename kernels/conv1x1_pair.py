"""A bottleneck's last 1x1 convolution and the next one's first, which reads what that writes, as one kernel.

out[m, :] = relu(x[m, :] weight^T + bias + residual[m, :]), a bottleneck's result, and
next[m, :] = relu(out[m, :] next_weight^T + next_bias) + token_map[token of m, :], the last part optional.

x: M rows (pixels) of K, weight: (N, K), next_weight: (L, N). A program makes its rows of out a few columns at a time
and multiplies these with the next weight while it has them: out, four times as wide as x, is written and never read.
That spares over a quarter of what the two would move. In 8 bits it would not pay: programs take longer to round than
memory to move.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import add_product, relu, token_of, zero_sums
from .chips import Chip, chip_of
from .dependent import wait_for_earlier
from .launch import Plan, launch, product_type
from .tiles import Tile, ceil_div


@triton.jit(do_not_specialize=["M", "rows_per_image", "width"])  # one binary for all batches and image sizes
def conv1x1_pair_kernel(
    x_ptr,  # in  (M, K)
    weight_ptr,  # in  (N, K)
    bias_ptr,  # in  (N,)
    residual_ptr,  # in  (M, N)
    next_weight_ptr,  # in  (L, N)
    next_bias_ptr,  # in  (L,)
    token_map_ptr,  # in  (images, rows_per_image / TOKEN_STRIDE ** 2, L), if TOKEN_STRIDE
    out_ptr,  # out (M, N)
    next_ptr,  # out (M, L)
    M,  # rows
    N,  # columns of out
    rows_per_image,  # row m is row m % rows_per_image of image m // rows_per_image
    width,  # and there at (row // width, row % width)
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    K: tl.constexpr,  # products per element of out
    L: tl.constexpr,  # columns of next
    TOKEN_STRIDE: tl.constexpr,  # add the token map, rows (pixels) per token side; 0: there is none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # columns of out at a time
    PIECE_K: tl.constexpr,  # products of a row that lie together: a power of two
    PIECE_L: tl.constexpr,  # columns of next that are summed together: a power of two
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_mask = m[:, None] < M
    row = m.to(tl.int64)[:, None]

    PIECES: tl.constexpr = (L + PIECE_L - 1) // PIECE_L
    STEPS: tl.constexpr = (K + PIECE_K - 1) // PIECE_K
    sums: tl.tuple = ()
    for _ in tl.static_range(PIECES):
        sums += (zero_sums(BLOCK_M, PIECE_L, next_weight_ptr.dtype.element_ty),)
    wait_for_earlier(DEPENDENT)

    rows: tl.tuple = ()
    for j in tl.static_range(STEPS):
        k = j * PIECE_K + tl.arange(0, PIECE_K)
        rows += (tl.load(x_ptr + row * K + k[None, :], mask=m_mask & (k < K)[None, :], other=0.0),)

    tl.assume(N > 0)  # else Hopper's products wait for each other: a loop that may not run shares their registers
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        n_mask = n < N
        acc = zero_sums(BLOCK_M, BLOCK_N, weight_ptr.dtype.element_ty)
        for j in tl.static_range(STEPS):
            k = j * PIECE_K + tl.arange(0, PIECE_K)
            weight_rows = weight_ptr + n.to(tl.int64)[None, :] * K
            weight = tl.load(weight_rows + k[:, None], mask=(k < K)[:, None] & n_mask[None, :], other=0.0)
            acc = add_product(acc, rows[j], weight, "ieee")
        acc += tl.load(bias_ptr + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]
        mask = m_mask & n_mask[None, :]
        acc += tl.load(residual_ptr + row * N + n[None, :], mask=mask, other=0.0).to(tl.float32)
        out = relu(acc).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * N + n[None, :], out, mask=mask)
        added: tl.tuple = ()
        for i in tl.static_range(PIECES):
            c = i * PIECE_L + tl.arange(0, PIECE_L)
            weight_rows = next_weight_ptr + c.to(tl.int64)[None, :] * N
            weight = tl.load(weight_rows + n[:, None], mask=n_mask[:, None] & (c < L)[None, :], other=0.0)
            added += (add_product(sums[i], out, weight, "ieee"),)
        sums = added

    for i in tl.static_range(PIECES):
        c = i * PIECE_L + tl.arange(0, PIECE_L)
        mask = m_mask & (c < L)[None, :]
        acc = relu(sums[i] + tl.load(next_bias_ptr + c, mask=c < L, other=0.0).to(tl.float32)[None, :])
        if TOKEN_STRIDE > 0:
            token = token_of(m, rows_per_image, width, TOKEN_STRIDE)
            acc += tl.load(token_map_ptr + token[:, None] * L + c[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(next_ptr + row * L + c[None, :], acc.to(next_ptr.dtype.element_ty), mask=mask)


TYPES = (torch.float16, torch.bfloat16)


def plan_conv1x1_pair(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    next_weight: Tensor,
    next_bias: Tensor,
    token_map: Tensor | None = None,
    token_stride: int = 1,
) -> Plan:
    """Arguments and result: functional.conv1x1_pair."""
    feature_map = feature_map.contiguous()
    (*map_shape, K), (L, N) = feature_map.shape, next_weight.shape
    M = feature_map.numel() // K
    tiles = _tiles(K, N, L, chip_of(weight.device))

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        out, following = (torch.empty(*map_shape, C, dtype=bias.dtype, device=weight.device) for C in (N, L))
        launch(
            conv1x1_pair_kernel,
            (ceil_div(M, tile.m),),
            tile,
            x_ptr=feature_map,
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            residual_ptr=residual.contiguous(),
            next_weight_ptr=next_weight.contiguous(),
            next_bias_ptr=next_bias.contiguous(),
            token_map_ptr=bias if token_map is None else token_map.contiguous(),
            out_ptr=out,
            next_ptr=following,
            M=M,
            N=N,
            rows_per_image=map_shape[1] * map_shape[2],
            width=map_shape[2],
            K=K,
            L=L,
            TOKEN_STRIDE=0 if token_map is None else token_stride,
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            PIECE_K=_piece(K),
            PIECE_L=_piece(L),
        )
        return out, following

    words = ["conv1x1_pair", product_type(weight), f"M{M} N{N} K{K} L{L}"]
    words += [f"tokens{token_stride}"] * (token_map is not None)
    tensors = feature_map, weight, bias, residual, next_weight, next_bias, *([] if token_map is None else [token_map])
    return Plan(" ".join(words), _unsupported(tiles, *tensors), tiles, run)


def pays(feature_map: Tensor, weight: Tensor, next_weight: Tensor) -> bool:
    """Whether the pair is faster than two kernels: if its programs, which are not divided by columns, fill the GPU."""
    K, (L, N) = feature_map.shape[-1], next_weight.shape
    chip = chip_of(weight.device)
    tiles = _tiles(K, N, L, chip)
    if _unsupported(tiles, feature_map, weight, next_weight):
        return False
    return feature_map.numel() // K >= tiles[0].m * chip.sms


def _unsupported(tiles: tuple[Tile, ...], *tensors: Tensor) -> str | None:
    types = dict.fromkeys(tensor.dtype for tensor in tensors)
    if len(types) > 1 or not types.keys() <= set(TYPES):
        return f"the pair is computed in fp16 or in bf16, all of it, got {' and '.join(map(str, types))}"
    return None if tiles else "what the pair keeps of its rows does not fit a program"


def _piece(size: int) -> int:
    """The power of two, 16 to 128, that pads `size` least: the largest such."""
    return min((128, 64, 32, 16), key=lambda piece: (ceil_div(size, piece) * piece, -piece))


def _tiles(K: int, N: int, L: int, chip: Chip) -> tuple[Tile, ...]:
    """Tiles of m rows and n columns of out at a time (k is 0: unused), the one that was predicted fastest first; none
    where what a program keeps does not fit.

    A program keeps its rows and the sums of L columns. 192 channels or fewer fit the registers of all chips; 256 where
    matrix instructions read from shared memory.
    """
    rows, columns = (ceil_div(size, _piece(size)) * _piece(size) for size in (K, L))
    widest = max(rows, columns)
    sides: tuple[tuple[int, int, int], ...]
    if chip.reads_shared:
        sides = ((128, 64, 8), (128, 32, 8))[widest < 64 :] if widest <= 256 else ()
    elif widest <= 128:
        sides = ((128, 32, 8), (64, 32, 4))
    else:
        sides = ((64, 32, 8),) if widest <= 192 else ()
    tiles = []
    for m, n, warps in sides:
        step = 2 * (n * (rows + columns) + m * n)  # of both weights, and the residual
        if 2 * step + 2 * m * rows + 2048 <= chip.shared and (n == 32 or N > 32):
            tiles.append(Tile(m, n, 0, warps, 2))
    return tuple(tiles)
