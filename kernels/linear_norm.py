"""out = residual + x weight^T + bias, and norm(out), which the next product reads.

In a large batch one kernel whose programs hold whole rows (whole_rows.py). A few rows would leave most of a GPU without
a program: their product is split by columns too (linear.py), and a second kernel (norm.py) normalizes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chips import chip_of
from .launch import Kept, Plan, Scales, product_type, words_of_8_bits
from .linear import plan_linear
from .norm import Norm, normalized
from .tiles import Tile
from .whole_rows import plan_whole_rows


def plan_linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> Plan:
    """Arguments and result: functional.linear_norm.

    Tiles: n is 0 where programs hold whole rows.
    """
    norm, kept = Norm(norm_weight, norm_bias, norm_eps), Kept(normed_scale, normed_dtype)
    M, (C, K) = residual.numel() // residual.shape[-1], weight.shape
    problem = " ".join([f"linear_norm {product_type(weight, bias)} M{M} C{C} K{K}", *words_of_8_bits(x, normed=kept)])
    whole = plan_whole_rows(problem, x, residual, weight, bias, norm, Scales(input_scale, weight_scale), kept)
    split = plan_linear(x, weight, bias, False, residual, input_scale, weight_scale)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        if not tile.n:
            return whole.launch(tile)
        out: Tensor = split.launch(tile)
        return out, normalized(out, norm, bias.dtype, kept)

    many = 32 * chip_of(weight.device).sms  # rows: half of the multiprocessors have 64 each
    tiles = (*whole.tiles, *split.tiles) if many <= M else (*split.tiles, *whole.tiles)
    return Plan(problem, split.unsupported, tiles, run)
