"""A reference model whose weights are yet to come: none is drawn, so PyTorch's random numbers are left to others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import ConformerConfig
from .reference import Conformer
from .shapes import Pad

Model = TypeVar("Model", bound=nn.Module)


def outline(config: ConformerConfig, features_only: bool = False, pad: Pad = "stem") -> Conformer:
    """On the meta device: every weight's name, shape and type, and no values."""
    return outline_of(lambda: Conformer(config, features_only, pad))


def outline_of(make: Callable[[], Model]) -> Model:
    """The same of the module that `make` makes."""
    with torch.device("meta"), _Unfilled():
        return make()


def in_memory(model: Model, device: torch.device) -> Model:
    """An `outline` with memory for its weights, which hold anything until they are loaded; counters are 0."""
    model = model.to_empty(device=device)
    for buffer in model.buffers():
        if not buffer.is_floating_point():  # a norm's count of batches, which is not loaded
            buffer.zero_()
    return model


class _Unfilled(TorchFunctionMode):
    """Inside, tensors are made but not filled: on the meta device too, PyTorch takes long for that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, kwargs or {}
        if name.endswith("_") and not name.endswith("__"):  # in place
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in (torch.ones, torch.zeros) else func)(*args, **kwargs)
