"""What the inference networks are made of: a product's weights, in 8 bits too, and a norm's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .quantization import Quantization, addend_of, result_of

AS_IT_IS: Mapping[str, Any] = MappingProxyType({})  # no keywords: a result in its own type


class Numbers(NamedTuple):
    """What stands for values in 8 bits: numbers of `dtype` at `scale`, as it is stored."""

    scale: float
    dtype: torch.dtype


class Weights(nn.Module):
    """A product's weight and bias; calling it returns both. In 8 bits it has `scales` too, else none.

    reads: the numbers that it makes of its input; adds: of what is added to it; makes: those that its result is, for
    attention. None if it does not.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(weight.detach().clone()), nn.Buffer(bias.detach().clone())
        self._scales: tuple[str, ...] = ()
        self.reads: Numbers | None = None
        self.adds: Numbers | None = None
        self.makes: Numbers | None = None

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias

    def scales(self) -> dict[str, Any]:
        """The operators' keywords of a product in 8 bits: "input_scale", "weight_scale" and maybe "addend_scale"."""
        return {name: self.get_buffer(name) for name in self._scales if name != "result_scale"}

    def as_read(self, result: str = "out", *others: Numbers | None) -> Mapping[str, Any]:
        """The operators' keywords that make a `result` the numbers that this product reads; none if it reads none, or
        `others` that read the result do not read the same."""
        if self.reads is None or any(numbers != self.reads for numbers in others):
            return AS_IT_IS
        return {f"{result}_scale": self.get_buffer("input_scale"), f"{result}_dtype": self.reads.dtype}

    def as_added(self) -> Mapping[str, Any]:
        """The keywords that make a result the numbers that this product adds to itself; none if it adds none."""
        if self.adds is None:
            return AS_IT_IS
        return {"out_scale": self.get_buffer("addend_scale"), "out_dtype": self.adds.dtype}

    def as_made(self) -> Mapping[str, Any]:
        """The keywords that make its result the numbers that attention reads; none if it reads none."""
        if self.makes is None:
            return AS_IT_IS
        return {"out_scale": self.get_buffer("result_scale"), "out_dtype": self.makes.dtype}

    def as_attended(self) -> Mapping[str, Any]:
        """The keywords of an attention that reads these numbers."""
        if self.makes is None:
            return AS_IT_IS
        return {"qkv_scale": self.get_buffer("result_scale")}

    def quantize(self, name: str, quantization: Quantization, attended: bool = False) -> None:
        """Puts the weight in 8 bits, and if `attended` the result for attention; `name` is the product's in
        `quantization`. Raises ArgumentError if it is already."""
        if self._scales:
            raise ArgumentError(f"quantized: {name} is in 8 bits already; start from the model before quantized()")
        dtype, device = self.weight.dtype, self.weight.device
        order = torch.channels_last if self.weight.ndim == 4 else torch.contiguous_format
        numbers, scale = quantization.weight(self.weight, axis=0)
        scales = {"weight_scale": scale, "input_scale": quantization.scale(name, dtype)}
        if addend_of(name) in quantization.ranges:
            scales["addend_scale"] = quantization.scale(addend_of(name), dtype)
        if attended and result_of(name) in quantization.ranges:
            scales["result_scale"] = quantization.scale(result_of(name), dtype)
        self.weight = nn.Buffer(numbers.to(device).contiguous(memory_format=order))
        for scale_name, value in scales.items():
            self.register_buffer(scale_name, value.to(device))
        self._scales = tuple(scales)
        self._remember(scales)

    def _remember(self, scales: Mapping[str, Tensor]) -> None:
        """What its scales say of what it reads and adds."""
        known = {name: scale for name, scale in scales.items() if scale.ndim == 0 and not scale.is_meta}
        numbers = {name: Numbers(scale.item(), self.weight.dtype) for name, scale in known.items()}
        self.reads, self.adds = numbers.get("input_scale"), numbers.get("addend_scale")
        self.makes = numbers.get("result_scale")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._remember({name: self.get_buffer(name) for name in self._scales})


class Norm(nn.Module):
    """A layer norm's weight, bias and eps; calling it returns all three."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(norm.weight.detach().clone()), nn.Buffer(norm.bias.detach().clone())
        self.eps = norm.eps

    def forward(self) -> tuple[Tensor, Tensor, float]:
        return self.weight, self.bias, self.eps
