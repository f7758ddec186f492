"""pooled[b] = mean over the map's pixels, class_token[b] = norm(tokens[b, 0]): what the two heads read.

x: the map (B, H, W, K), tokens: (B, T, C), pooled: (B, K), class_token: (B, C). One launch: a program takes a block of
an image's channels over all its pixels, and one more for each image normalizes the class token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import normalize, row_statistics
from .chips import Chip, chip_of
from .dependent import wait_for_earlier
from .launch import Plan, launch, product_type, unsupported_dtype
from .tiles import Tile, ceil_div, power_of_two


@triton.jit
def pool_kernel(
    x_ptr,  # in  (B, H, W, K)
    tokens_ptr,  # in  (B, T, C); only the class tokens are read
    norm_weight_ptr,  # in  (C,)
    norm_bias_ptr,  # in  (C,)
    pooled_ptr,  # out (B, K)
    class_token_ptr,  # out (B, C)
    pixels,  # H * W
    K,  # channels of the map
    C,  # channels of a token
    stride_tokens,  # elements from one image's class token to the next
    norm_eps,  # added to the variance
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    BLOCK_P: tl.constexpr,  # pixels at a time
    BLOCK_K: tl.constexpr,  # channels of the map at a time
    BLOCK_C: tl.constexpr,  # channels of a token at a time
):
    wait_for_earlier(DEPENDENT)
    blocks = tl.cdiv(K, BLOCK_K)
    image = (tl.program_id(0) // (blocks + 1)).to(tl.int64)
    block = tl.program_id(0) % (blocks + 1)
    if block < blocks:
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        total = tl.zeros((BLOCK_K,), tl.float32)
        for p0 in range(0, pixels, BLOCK_P):
            p = p0 + tl.arange(0, BLOCK_P)
            mask = (p[:, None] < pixels) & (k[None, :] < K)
            x = tl.load(x_ptr + image * pixels * K + p[:, None] * K + k[None, :], mask=mask, other=0.0)
            total += tl.sum(x.to(tl.float32), 0)
        tl.store(pooled_ptr + image * K + k, (total / pixels).to(pooled_ptr.dtype.element_ty), mask=k < K)
    else:
        row = tokens_ptr + (image + tl.arange(0, 1)) * stride_tokens
        first, mean, rstd = row_statistics(row, tl.full((1,), True, tl.int1), C, norm_eps, BLOCK_C)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            x = tl.load(row[:, None] + c[None, :], mask=c[None, :] < C, other=0.0)
            x = normalize(x, first, mean, rstd, norm_weight_ptr, norm_bias_ptr, c, C)
            at = class_token_ptr + image * C + c[None, :]
            tl.store(at, x.to(class_token_ptr.dtype.element_ty), mask=c[None, :] < C)


def plan_pool(feature_map: Tensor, tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor, norm_eps: float) -> Plan:
    """Arguments and result: functional.pool.

    Tiles: m pixels and k channels at a time; n is 1.
    """
    B, H, W, K = feature_map.shape
    C = tokens.shape[-1]

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        pooled = torch.empty((B, K), dtype=feature_map.dtype, device=feature_map.device)
        class_token = torch.empty((B, C), dtype=tokens.dtype, device=tokens.device)
        rows, stride = class_rows(tokens)
        launch(
            pool_kernel,
            (B * (ceil_div(K, tile.k) + 1),),
            tile,
            x_ptr=feature_map.contiguous(),
            tokens_ptr=rows,
            norm_weight_ptr=norm_weight.contiguous(),
            norm_bias_ptr=norm_bias.contiguous(),
            pooled_ptr=pooled,
            class_token_ptr=class_token,
            pixels=H * W,
            K=K,
            C=C,
            stride_tokens=stride,
            norm_eps=norm_eps,
            BLOCK_P=tile.m,
            BLOCK_K=tile.k,
            BLOCK_C=256,
        )
        return pooled, class_token

    return Plan(
        f"pool {product_type(feature_map)} B{B} P{H * W} K{K} C{C}",
        unsupported_dtype(feature_map),
        pool_tiles(B, H * W, K, chip_of(feature_map.device)),
        run,
    )


def class_rows(tokens: Tensor) -> tuple[Tensor, int]:
    """A tensor that starts with the first class token, and the elements from each to the next image's."""
    rows = tokens[:, 0]  # (B, C)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    return rows, rows.stride(0)


def pool_tiles(B: int, pixels: int, K: int, chip: Chip) -> tuple[Tile, ...]:
    """The tiles of plan_pool: wide blocks of channels if they give every multiprocessor a program, else narrow ones."""
    tiles = [Tile(min(256, power_of_two(pixels)), 1, k, 4 if pixels <= 64 else 8, 1) for k in (64, 32)]
    return tuple(tiles if B * ceil_div(K, 64) >= chip.sms else reversed(tiles))
