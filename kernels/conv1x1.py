"""relu(x weight^T + bias + residual) at every stride-th pixel of a map: a product whose rows are pixels (linear.py).

FCU-up's token_map (B, H / S * W / S, K') is added on the way out, entry [h // S, w // S] at pixel [h, w]: its upsampled
form is never written. So is a pyramid's coarser map, with S = 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Kept, Plan, Scales
from .linear import Rows, plan_product
from .tiles import ceil_div


def plan_conv1x1(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    relu: bool = True,
    residual: Tensor | None = None,
    token_map: Tensor | None = None,
    token_stride: int = 1,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    addend_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.conv1x1."""
    feature_map = feature_map.contiguous()
    B, H, W, K = feature_map.shape
    height, width = ceil_div(H, stride), ceil_div(W, stride)
    rows = Rows(feature_map, B, height, width, H * W * K, stride * W * K, stride * K)
    return plan_product(
        "conv1x1",
        rows,
        weight,
        bias,
        (B, height, width, weight.shape[0]),
        dtype=bias.dtype,
        relu=relu,
        residual=residual,
        token_map=token_map,
        token_stride=token_stride,
        scales=Scales(input_scale, weight_scale, addend_scale),
        kept=Kept(out_scale, out_dtype),
    )


def plan_lateral(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    coarser: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Plan:
    """Arguments and result: functional.lateral."""
    token_map = coarser.flatten(1, 2)
    return plan_conv1x1(feature_map, weight, bias, 1, False, None, token_map, 2, input_scale, weight_scale)
