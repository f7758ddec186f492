"""normed[m, :] = layer norm of x[m, :]: M rows of C, for tokens whose product's programs do not hold whole rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import as_read
from .dependent import wait_for_earlier
from .launch import Kept, launch
from .tiles import Tile, ceil_div, power_of_two


class Norm(NamedTuple):
    """A layer norm. weight, bias: (C,). eps: added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float


@triton.jit(do_not_specialize=["M"])  # one binary for all batches and image sizes
def norm_kernel(
    x_ptr,  # in  (M, C)
    norm_weight_ptr,  # in  (C,)
    norm_bias_ptr,  # in  (C,)
    normed_scale_ptr,  # in  scalar, if normed is in 8 bits
    normed_ptr,  # out (M, C)
    M,  # rows
    C,  # channels
    norm_eps,  # added to the variance
    DEPENDENT: tl.constexpr,  # launched before the kernel before it ends (dependent.py)
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,  # power of two >= C
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    mask = (m < M)[:, None] & (c < C)[None, :]
    offset = m.to(tl.int64)[:, None] * C + c[None, :]
    wait_for_earlier(DEPENDENT)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    x -= (tl.sum(x, 1) / C)[:, None]
    squares = tl.sum(tl.where(mask, x * x, 0.0), 1)
    rstd = (1 / tl.sqrt(squares / C + norm_eps))[:, None]
    weight = tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(norm_bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    normed = as_read(x * rstd * weight + bias, normed_scale_ptr, normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + offset, normed, mask=mask)


def normalized(x: Tensor, norm: Norm, dtype: torch.dtype, kept: Kept) -> Tensor:
    """The layer norm of contiguous rows (..., C), in `dtype` or as it is `kept`."""
    C = x.shape[-1]
    M = x.numel() // C
    block = power_of_two(C)
    tile = Tile(max(1, ROW_ELEMENTS // block), block, 0, 4, 1)
    out = torch.empty(x.shape, dtype=kept.dtype or dtype, device=x.device)
    launch(
        norm_kernel,
        (ceil_div(M, tile.m),),
        tile,
        x_ptr=x,
        norm_weight_ptr=norm.weight.contiguous(),
        norm_bias_ptr=norm.bias.contiguous(),
        normed_scale_ptr=x if kept.scale is None else kept.scale,
        normed_ptr=out,
        M=M,
        C=C,
        norm_eps=norm.eps,
        BLOCK_M=tile.m,
        BLOCK_C=tile.n,
    )
    return out


ROW_ELEMENTS = 2048  # of a program's rows: 16 a thread
