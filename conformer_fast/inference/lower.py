"""From the reference to the inference network that every engine computes."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..model.config import ConformerConfig
from ..model.reference import Conformer
from .network import InferenceConformer


def fuse(model: Conformer) -> InferenceConformer:
    """The inference model of `model`, which is left untouched and shares no memory with it.

    Raises ValueError if any part is in training mode: its batch norms would then not be the ones folded.
    """
    if any(part.training for part in model.modules()):
        raise ValueError("fuse: the model, or a part of it, is in training mode; call model.eval() first")
    with torch.no_grad():
        return InferenceConformer(model).requires_grad_(False).eval()


def blank(config: ConformerConfig, dtype: torch.dtype, *, heads: bool, norm: bool) -> InferenceConformer:
    """An inference model on the meta device: every weight's name, shape and type, and no values.

    dtype: as in `InferenceConformer.in_precision`
    heads: whether it has the two classifiers, and so their norm; norm: whether it has the norm alone
    """
    with torch.device("meta"), _Unfilled():
        model = Conformer(config, features_only=not heads)
        if norm and not heads:
            model.trans_norm = nn.LayerNorm(config.embed_dim)
    return fuse(model.eval())._cast(dtype)


class _Unfilled(TorchFunctionMode):
    """Inside, tensors are made but not filled: on the meta device too, PyTorch takes long for that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, kwargs or {}
        if name.endswith("_") and not name.endswith("__"):  # in place
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in (torch.ones, torch.zeros) else func)(*args, **kwargs)
