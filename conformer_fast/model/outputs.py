"""The reference model's values under the names that the inference model gives its outputs (InferenceConformer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, first_few, several, shown
from .config import ConformerConfig
from .reference import Conformer, ConformerFeatures

LOGITS = ("conv_logits", "trans_logits")
SUM = "logits"
COUPLING = (".fcu_down", ".fcu_up")


def output_names(config: ConformerConfig, *, heads: bool, norm: bool) -> tuple[str, ...]:
    """Every name of a model of these sizes. heads: whether it has the two classifiers; norm: whether the norm before
    them, which pooled maps and class tokens need"""
    kinds = ("map", "tokens", "pooled", "class_token") if norm else ("map", "tokens")
    blocks = range(1, config.depth + 1)
    names = [f"{index}.{kind}" for index in blocks for kind in kinds]
    names += [f"{index}{kind}" for index in blocks[1:] for kind in COUPLING]
    return (*LOGITS, SUM, *names) if heads else tuple(names)


def names_of(model: Conformer) -> tuple[str, ...]:
    """Every name that there is of a reference model."""
    return output_names(model.config, heads=not model.features_only, norm=hasattr(model, "trans_norm"))


def check_outputs(outputs: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`outputs` as a tuple. Raises ArgumentError for an unknown name, a name given twice, or none."""
    names = several("outputs", outputs)
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown:
        raise ArgumentError(f"no such outputs: {first_few(map(repr, unknown))}; this model has {', '.join(known)}")
    if len(set(names)) != len(names) or not names:
        raise ArgumentError(f"outputs must be one or more different names, got {shown(names)}")
    return tuple(names)


def reference_outputs(model: Conformer, images: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
    """What `lower(model).with_outputs(names)` returns for `images`, computed by the reference model itself."""
    found: dict[str, Tensor] = {}
    for index, (feature_map, tokens) in enumerate(model.forward_blocks(images), start=1):
        found[f"{index}.map"], found[f"{index}.tokens"] = feature_map, tokens
        if {f"{index}.pooled", f"{index}.class_token"} & set(names):
            found[f"{index}.pooled"], found[f"{index}.class_token"] = model.pool(feature_map, tokens)
    if {*LOGITS, SUM} & set(names):
        output = model.forward_head(ConformerFeatures((feature_map,), tokens))
        found.update(zip((*LOGITS, SUM), (*output, output.logits), strict=True))
    return tuple(found[name] for name in names)


def observed_outputs(model: Conformer, images: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The same with the coupling units' "k.fcu_down" and "k.fcu_up" too. It hooks the model: one thread at a time."""
    seen: dict[str, Tensor] = {}
    handles = []
    for index in range(2, model.config.depth + 1):
        block = model.coupled_block(index)

        def see_down(module, inputs, name=f"{index}.fcu_down"):
            seen[name] = inputs[0]

        def see_up(module, inputs, output, name=f"{index}.fcu_up", stride=block.expand_block.stride):
            seen[name] = output[:, :, ::stride, ::stride].flatten(2).transpose(1, 2)  # (B, N, K), before repetition

        handles.append(block.trans_block.register_forward_pre_hook(see_down))
        handles.append(block.expand_block.register_forward_hook(see_up))
    try:
        others = [name for name in names if not name.endswith(COUPLING)]
        seen.update(zip(others, reference_outputs(model, images, others), strict=True))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen[name] for name in names)


def feature_names(config: ConformerConfig) -> tuple[str, ...]:
    """The outputs that ConformerFeatures holds: the maps after `config.feature_blocks` and the last tokens."""
    return (*(f"{block}.map" for block in config.feature_blocks), f"{config.depth}.tokens")


class Softmax(tuple[Any]):
    """In a structure: what is returned is the softmax of its one leaf, over the classes."""


def rebuild(structure: Any, leaves: Sequence[Any]) -> Any:
    """`structure`, a nest of lists and tuples, with its leaves replaced by these, in order."""
    return _fill(structure, iter(leaves))


def _fill(structure: Any, tensors: Any) -> Any:
    if not isinstance(structure, list | tuple):
        return next(tensors)
    parts = [_fill(part, tensors) for part in structure]
    if isinstance(structure, Softmax) and all(isinstance(part, Tensor) for part in parts):  # else names are filled in
        (logits,) = parts
        return logits.softmax(-1)
    return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
