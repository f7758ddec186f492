"""What each operation of a network must do at least: operations of its products, and bytes to read and to write."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..model import functional as CF
from ..model.blank import outline
from ..model.config import ConformerConfig
from ..model.precision import DTYPES, FORMATS
from .lower import lower
from .ops import NAMESPACE
from .quantization import Quantization

_STORED = {dtype: name for name, dtype in FORMATS.items()}


@dataclass(frozen=True)
class Work:
    """Of one call of an operator.

    precision:   of its products
    weights:     bytes of weights, biases and scales that it reads
    activations: bytes that it reads and writes besides
    flops:       of its products, a multiplication and an addition being two
    """

    precision: str
    weights: int
    activations: int
    flops: int


def of_network(
    config: ConformerConfig,
    shape: Sequence[int],
    precision: str,
    quantization: Quantization | None = None,
    *,
    features_only: bool = False,
) -> list[Work]:
    """Of every call that the inference network of such a model makes for images of `shape`, (B, in_channels, H, W).

    precision: "fp32", "bf16" or "fp16": of all but what `quantization` has in 8 bits
    """
    with torch.device("meta"), torch.no_grad():
        network = lower(outline(config, features_only).eval(), None, precision, quantization)
        with _Noting(precision) as noted:
            network(torch.empty(*shape, dtype=DTYPES[precision]))
    return noted.made


def arguments_of(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of an operator, by name."""
    bound = inspect.signature(getattr(CF, operation)).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def of_call(operation: str, arguments: Mapping[str, Any], precision: str) -> Work:
    """Of a call of the operator `operation`. arguments: all of them by name, tensors without data; precision: of its
    products, unless they are in 8 bits."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = getattr(CF, operation)(**arguments)
    outputs = (out,) if isinstance(out, Tensor) else out
    read = _read(operation, **arguments)
    weights = sum(size(value) for name, value in read.items() if is_weight(name))
    activations = sum(size(value) for name, value in read.items() if not is_weight(name))
    return Work(
        next((_STORED[value.dtype] for value in read.values() if value.dtype in _STORED), precision),
        weights,
        activations + sum(map(size, outputs)),
        counter.get_total_flops(),
    )


def is_weight(name: str) -> bool:
    """Whether an argument of this name belongs to the model."""
    return name.endswith(("weight", "bias", "scale", "cls_token"))


def size(tensor: Tensor) -> int:
    """Bytes."""
    return tensor.numel() * tensor.element_size()


def _read(operation: str, **arguments: Any) -> dict[str, Tensor]:
    """The parts of the arguments that the operation needs, by name."""
    if operation == "conv1x1":
        stride = arguments["stride"]
        arguments["feature_map"] = arguments["feature_map"][:, ::stride, ::stride]
    elif operation in ("heads", "pool"):
        arguments["tokens"] = arguments["tokens"][:, 0]
    elif operation == "fcu_up":
        arguments["tokens"] = arguments["tokens"][:, 1:]
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


class _Noting(TorchDispatchMode):
    """Inside, the work of each call of our operators is added to `made`."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._precision = precision
        self.made: list[Work] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call imports it, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            name = func.overloadpacket.__name__
            self.made.append(of_call(name, arguments_of(name, args, kwargs), self._precision))
        return func(*args, **kwargs)
