"""What all inference networks can do: return other outputs, compute in another precision, multiply in 8 bits."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, first_few
from ..model.outputs import check_outputs
from .quantization import Quantization, addend_of, result_of
from .weights import Weights

Module = TypeVar("Module", bound=nn.Module)

READ_A_NORM = ("qkv", "fc1")  # products of a transformer block


class InferenceNetwork(nn.Module):
    """A tensor (B, in_channels, H, W) -> a tuple of the tensors named in `outputs`. Its weights are buffers: nothing
    trains here. It is a straight line of the operators of ops.py, so that it can be traced (trace.py).

    config: of the model that it was made from
    """

    outputs: tuple[str, ...]
    config: Any
    channels_last: ClassVar[bool] = False  # what it reads is (B, H, W, in_channels)

    @property
    @abstractmethod
    def second_dimension(self) -> int:
        """Of what it reads, which is the same for every call: its channels, or the height where they come last."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what it reads, and of its maps; weights may be in 8 bits."""
        return self._first_bias.dtype

    @property
    def device(self) -> torch.device:
        return self._first_bias.device

    @property
    def _first_bias(self) -> Tensor:
        return next(part.bias for part in self.modules() if isinstance(part, Weights))

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Every name that `outputs` may hold."""

    @property
    @abstractmethod
    def last_products(self) -> tuple[str, ...]:
        """The names of the products whose results leave it, which stay out of 8 bits."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]: ...

    def with_outputs(self, outputs: Sequence[str]) -> Self:
        """A copy that returns these outputs. It shares the weights' memory, and casts or moves leave this model alone.

        Raises ArgumentError for an unknown name, a name given twice, or none.
        """
        names = check_outputs(outputs, self.output_names)
        other = _copy(self)
        other.outputs = names
        return other

    def in_precision(self, dtype: torch.dtype) -> Self:
        """A copy whose products and maps are in `dtype`, and whose tokens and norms are in float32.

        Weights that are so already share this model's memory.

        The class token doubles in each coupled block, beyond what float16 may hold, and each residual sum would round
        it again. Convolutions keep their weights in the memory order of channels-last maps.

        Raises ArgumentError for a model with products in 8 bits, whose numbers were chosen for the type around them.
        """
        if any(isinstance(part, Weights) and part.scales() for part in self.modules()):
            raise ArgumentError(
                "in_precision: the model has products in 8 bits; call in_precision() first, then quantized()"
            )
        other = _copy(self).float()
        for part in other.modules():
            if isinstance(part, Weights):
                part.to(dtype)
                if part.weight.ndim == 4:
                    part.weight = nn.Buffer(part.weight.contiguous(memory_format=torch.channels_last))
        return other

    @property
    def quantizable(self) -> tuple[str, ...]:
        """The names of the products that `quantized` takes: all but the last ones."""
        products = (name for name, part in self.named_modules() if isinstance(part, Weights))
        return tuple(name for name in products if name not in self.last_products)

    def smoothed(self, factors: Mapping[str, Sequence[float]]) -> Self:
        """An equal copy, up to rounding: what a product reads from its layer norm is divided by its factors, one for
        each channel, and its weight is multiplied by them (smoothquant.py).

        factors: by the product's name, "trans_1.qkv" or "trans_1.fc1"

        Other weights share this model's memory.

        Raises ArgumentError for other products, and unless the factors are one positive number for each channel.
        """
        other = _copy(self)
        for name, values in factors.items():
            owner, _, product = name.rpartition(".")
            block: Any = other.get_submodule(owner) if name in self.quantizable else None
            if product not in READ_A_NORM or not hasattr(block, "smooth"):
                raise ArgumentError(
                    f"smoothed: {name} is no product that reads a layer norm; were the factors made for another model?"
                )
            weight = block.norm1.weight
            if len(values) != len(weight) or not all(0 < value < math.inf for value in values):
                raise ArgumentError(
                    f"smoothed: {name} takes {len(weight)} positive factors, got {len(values)} of which the least is "
                    f"{min(values, default=0)}; were they made for another model?"
                )
            block.smooth(product, torch.tensor(values, dtype=torch.float64, device=weight.device))
        return other

    def check_products(self, quantization: Quantization) -> None:
        """Raises ArgumentError for ranges of products that the model does not have, or not to be put in 8 bits."""
        names = self.quantizable
        adding = [addend_of(name) for name in names if name.endswith(".conv3")]
        results = [result_of(name) for name in names if name.endswith(".qkv")]
        unknown = set(quantization.ranges) - {*names, *adding, *results}
        if unknown:
            raise ArgumentError(
                f"quantized: the model has no products {first_few(sorted(unknown))}, but {first_few(names)}; were the "
                f"ranges measured on another one?"
            )

    def quantized(self, quantization: Quantization, attended: bool = False) -> Self:
        """A copy whose products that `quantization` has ranges of are computed in 8 bits (functional.py), the weight
        stored in them beside its scales. The others stay as they are, and so does what is not only read in 8 bits.

        What a bottleneck adds is in 8 bits too if it has a range (`addend_of`) and the product it is added to is.
        attended: whether what attention reads is, where the joint projection's result has one (`result_of`) and it is
        Weights that stay as they are share this model's memory.

        Raises ArgumentError for ranges of products that the model does not have, or has in 8 bits already.
        """
        self.check_products(quantization)
        other = self.smoothed(quantization.smoothing)
        for name, part in other.named_modules():
            if name in quantization.ranges and isinstance(part, Weights):
                part.quantize(name, quantization, attended)
        return other


def _copy(part: Module) -> Module:
    """A copy of a module and all inside it. It shares the weights' memory, and casts or moves leave the module alone;
    copy.deepcopy takes thirty times as long."""
    other = copy.copy(part)
    vars(other).update({name: value.copy() for name, value in vars(part).items() if isinstance(value, dict | set)})
    other._modules.update({name: inner and _copy(inner) for name, inner in part._modules.items()})
    return other
