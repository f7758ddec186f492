"""out[b, 1 + n] = tokens[b, 1 + n] + gelu(norm(mean(x[b, window n]) weight^T + bias)), out[b, 0] = 2 tokens[b, 0].

x: the map (B, H, W, K), weight: (C, K), tokens and out: (B, T, C); window n is the S x S pixels of token n. One kernel
from the map to the transformer's input and to the norm of it that the attention reads: a product whose programs hold
whole rows (whole_rows.py). All T rows of an image are rows of the product. The class token's reads no pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Kept, Plan, Scales, product_type, words_of_8_bits
from .norm import Norm
from .whole_rows import plan_whole_rows


def plan_fcu_down(
    feature_map: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    inner_weight: Tensor,
    inner_bias: Tensor,
    inner_eps: float,
    stride: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.fcu_down."""
    (B, T, C), K, kept = tokens.shape, feature_map.shape[-1], Kept(normed_scale, normed_dtype)
    problem = f"fcu_down {product_type(weight, bias)} M{B * T} C{C} K{K} S{stride}"
    return plan_whole_rows(
        " ".join([problem, *words_of_8_bits(feature_map, normed=kept)]),
        feature_map,
        tokens,
        weight,
        bias,
        Norm(norm_weight, norm_bias, norm_eps),
        Scales(input_scale, weight_scale),
        kept,
        Norm(inner_weight, inner_bias, inner_eps),
        stride,
    )
