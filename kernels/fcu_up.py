"""Feature Coupling Unit, transformer to CNN, at token resolution: relu(tokens[:, 1:] weight^T + bias).

A product whose rows skip the class tokens (linear.py). The upsampled map is never written: the 1x1 convolution of the
fusion block adds entry [h // S, w // S] to its pixel [h, w] (conv1x1.py).
"""

from __future__ import annotations

from torch import Tensor

from .launch import Kept, Plan, Scales
from .linear import Rows, plan_product


def plan_fcu_up(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Plan:
    """Arguments and result: functional.fcu_up."""
    patches = tokens.contiguous()[:, 1:]  # (B, N, C)
    B, N, C = patches.shape
    rows = Rows(patches, B, 1, N, (N + 1) * C, N * C, C)
    return plan_product(
        "fcu_up",
        rows,
        weight,
        bias,
        (B, N, weight.shape[0]),
        dtype=bias.dtype,
        relu=True,
        scales=Scales(input_scale, weight_scale),
        kept=Kept(),
    )
