"""Calls of operations in 8 bits."""

from __future__ import annotations

import inspect
from typing import Any

from conformer_fast import functional as CF
from conformer_fast.quantization import Quantization


def in_8_bits(operation: str, arguments: list[Any], quantization: Quantization) -> list[Any]:
    """The same call in 8 bits: its weight stored, and the scales of the ranges of "input" and "addend"."""
    call = inspect.signature(getattr(CF, operation)).bind(*arguments)
    call.apply_defaults()
    weight = call.arguments["weight"]
    numbers, scale = quantization.weight(weight, axis=0)
    call.arguments |= {"weight": numbers.to(weight.device), "weight_scale": scale.to(weight.device)}
    call.arguments["input_scale"] = quantization.scale("input", weight.dtype).to(weight.device)
    if call.arguments.get("residual") is not None and "addend_scale" in call.arguments:
        call.arguments["addend_scale"] = quantization.scale("addend", weight.dtype).to(weight.device)
    return list(call.arguments.values())
