"""Calls of operations in 8 bits, and ranges for networks in 8 bits."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from conformer_fast.calibration.observer import Observer
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import RESULT, Quantization
from conformer_fast.model import functional as CF

RANGES = {"input": 3.0, "addend": 3.0}  # of values around 1: the largest are beyond, and held back
TIES = 2e-3  # relative error that float64 has too: a value near a tie may round the other way after another norm or sum


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


def passed_on(operation: str, arguments: list[Any], quantization: Quantization) -> list[Any]:
    """The same call in 8 bits, of what is in them already, its results kept as readers take them."""
    call = inspect.signature(getattr(CF, operation)).bind(*in_8_bits(operation, arguments, quantization))
    given = call.arguments
    first = next(iter(given))
    made_on_the_way = operation == "stem" or (operation == "fcu_down" and given["stride"] > 1)  # a mean of values is
    for name, scale in ((first, "input_scale"), ("residual", "addend_scale")):
        if given.get(name) is not None and given.get(scale) is not None and not made_on_the_way:
            given[name] = CF.stored(given[name].float() / given[scale].float(), quantization.dtype)
    for name in [name for name in given if name.endswith("_dtype")]:
        scale = quantization.scale("input", given["bias"].dtype).to(given["bias"].device)
        given |= {name: quantization.dtype, name.replace("_dtype", "_scale"): scale}
    return list(given.values())


def is_result(name: str) -> bool:
    """Whether a range is of what attention reads."""
    return name.endswith(RESULT)


def largest_inputs(model: InferenceConformer, batches: Iterable[Tensor]) -> dict[str, float]:
    """The largest magnitude that each product reads, and that bottlenecks add: ranges that clip nothing, in any format.

    model: in fp32, on the device of the images
    """
    largest: dict[str, float] = {}
    observer = Observer(model)

    def see(name: str, value: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), value.abs().amax().item())

    for images in batches:
        observer.observe(images, see)
    return largest
