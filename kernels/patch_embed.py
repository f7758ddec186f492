"""One product per S x S patch of the stem map, behind the class token, and the norm of all of them.

A product whose rows are patches (linear.py): S pieces, one a line of the map, of S * K adjacent elements each. A second
kernel (norm.py) normalizes the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Kept, Plan, Scales, prepared, words_of_8_bits
from .linear import Rows, plan_product
from .norm import Norm, normalized
from .tiles import Tile


def plan_patch_embed(
    stem_map: Tensor,
    cls_token: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.patch_embed."""
    stem_map = stem_map.contiguous()
    kept = Kept(normed_scale, normed_dtype)
    B, H, W, K = stem_map.shape
    C, S = weight.shape[0], weight.shape[-1]
    height, width = H // S, W // S
    matrix = prepared(weight, lambda weight: weight.permute(0, 2, 3, 1).reshape(C, S * S * K).contiguous())
    rows = Rows(stem_map, B, height, width, H * W * K, S * W * K, S * K, segment=S * K, stride_segment=W * K)
    product = plan_product(
        "patch_embed",
        rows,
        matrix,
        bias,
        (B, 1 + height * width, C),
        dtype=torch.promote_types(bias.dtype, cls_token.dtype),
        skip_class=True,
        scales=Scales(input_scale, weight_scale),
        kept=Kept(),
    )

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        tokens: Tensor = product.launch(tile)
        tokens[:, :1] = cls_token
        return tokens, normalized(tokens, Norm(norm_weight, norm_bias, norm_eps), bias.dtype, kept)

    problem = " ".join([product.problem, *words_of_8_bits(normed=kept)])
    return Plan(problem, product.unsupported, product.tiles, run)
