"""From the reference to the inference network that every engine computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import nn

from ..errors import ArgumentError
from ..model.blank import outline, outline_of
from ..model.config import ConformerConfig
from ..model.detector.config import DetectorConfig
from ..model.detector.parts import BoxHead, MaskHead, Proposer
from ..model.detector.reference import Detector
from ..model.precision import DTYPES
from ..model.reference import Conformer
from .base import InferenceNetwork
from .detector import InferenceBoxHead, InferenceMaskHead, InferenceProposer, parts_of
from .network import InferenceConformer
from .quantization import Quantization

Lowered = Conformer | Proposer | BoxHead | MaskHead
"""What inference networks are made of: a Conformer, or a part of a detector. Each has a `config`."""

_NETWORKS: dict[type, Callable[[Any], InferenceNetwork]] = {
    Conformer: InferenceConformer,
    Proposer: InferenceProposer,
    BoxHead: InferenceBoxHead,
    MaskHead: InferenceMaskHead,
}


@overload
def lower(
    reference: Conformer,
    outputs: Sequence[str] | None = None,
    precision: str | None = None,
    quantization: Quantization | None = None,
    attended: bool = False,
) -> InferenceConformer: ...


@overload
def lower(
    reference: Lowered,
    outputs: Sequence[str] | None = None,
    precision: str | None = None,
    quantization: Quantization | None = None,
    attended: bool = False,
) -> InferenceNetwork: ...


def lower(
    reference: Lowered,
    outputs: Sequence[str] | None = None,
    precision: str | None = None,
    quantization: Quantization | None = None,
    attended: bool = False,
) -> InferenceNetwork:
    """The inference network of `reference`, which is left untouched and shares no memory with it.

    outputs:      names of the network's outputs; default: what the reference returns
    precision:    of products and maps, as `in_precision` takes it: "fp32", "bf16" or "fp16"; None leaves every type
    quantization: which products are in 8 bits, and how
    attended:     whether what attention reads is too

    Raises ArgumentError if any part is in training mode, as its batch norms would then not be the ones folded, and for
    outputs or products that the model does not have.
    """
    if any(part.training for part in reference.modules()):
        raise ArgumentError("lower: the model, or a part of it, is in training mode; call model.eval() first")
    with torch.no_grad():
        made = next(made for kind, made in _NETWORKS.items() if isinstance(reference, kind))
        network = made(reference).requires_grad_(False).eval()
    if outputs is not None:
        network = network.with_outputs(outputs)
    if precision is not None:
        network = network.in_precision(DTYPES[precision])
    return network.quantized(quantization, attended) if quantization else network


def blank(
    config: ConformerConfig, outputs: Sequence[str] | None, precision: str, *, heads: bool, norm: bool
) -> InferenceConformer:
    """An inference model on the meta device: every weight's name, shape and type, and no values.

    outputs, precision: as `lower` takes them
    heads: whether it has the two classifiers, and so their norm; norm: whether it has the norm alone
    """
    model = outline(config, features_only=not heads)
    if norm and not heads:
        model.trans_norm = nn.LayerNorm(config.embed_dim, device="meta")
    return lower(model.eval(), outputs, precision)


def blank_part(config: DetectorConfig, name: str, precision: str) -> InferenceNetwork:
    """The same of a part of a detector, one of `parts_of`."""
    detector = outline_of(lambda: Detector(config)).eval()
    return lower(parts_of(detector)[name], precision=precision)
