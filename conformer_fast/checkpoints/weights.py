"""Loading of weights: names and shapes are compared and counted before a model is changed, or memory taken for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError, first_few, shown, truth
from ..model.blank import in_memory, outline
from ..model.config import PACKAGED, ConformerConfig, our_name
from ..model.forked import before_computing
from ..model.recipe import Recipe
from ..model.reference import Conformer
from ..model.shapes import Pad
from .dialects import COUNTER, HEADS, Dialect, Recognized, recognize
from .openmmlab import recipe_beside
from .reading import existing_file, meta_in, read_checkpoint, state_dict_in

QKV_WEIGHT, QKV_BIAS = ".attn.qkv.weight", ".attn.qkv.bias"
DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` or `convert` did.

    dialect: whose names the weights had: "official", "mmpretrain" or "mmdetection"
    matched: tensors taken over
    ignored: keys left alone: counters, a detector's other parts, heads when the model has none
    """

    dialect: Dialect
    matched: int
    ignored: int


def load_weights(model: Conformer, source: str | os.PathLike[str] | Mapping[str, Any], ema: bool = False) -> LoadReport:
    """Copies a checkpoint, or a state dict, of any dialect into `model`, cast to the model's dtype. All or nothing.

    A features_only model takes no heads and no trans_norm. Counters (num_batches_tracked) are left alone. The model's
    `recipe` is what it was set to and, of the rest, what the file says of itself; a state dict says nothing. Warns, in
    one line, where the file says otherwise than what was set.

    Raises CheckpointError, and leaves the model as it was, when a tensor is missing, unexpected, misshapen, not
    floating point or not finite, or a variance negative, and for the weights of another model: other heads, labels of
    other classes.
    """
    if not isinstance(model, Conformer):
        raise ArgumentTypeError(f"load_weights fills a reference Conformer, got a {type(model).__name__}")
    truth("ema", ema)
    before_computing()
    if isinstance(source, Mapping):
        state = state_dict_in(source, ema)
        found = recognize(state)
        return _copy(found, recipe_beside(found, state, meta_in(source), "the checkpoint"), model)
    checkpoint = read_checkpoint(source, ema)
    try:
        return _copy(checkpoint.found, checkpoint.recipe, model)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def resolve_weights(name: str | ConformerConfig, weights: str | os.PathLike[str]) -> Path:
    """The file meant by `weights`: "pretrained" (downloaded if need be), "packaged" (digits only) or a path.

    Raises CheckpointError when there is no such file, DownloadError when it cannot be downloaded.
    """
    name = our_name(name) if isinstance(name, str) else name
    if weights == "pretrained":
        if not isinstance(name, str):
            raise CheckpointError("weights='pretrained' needs the name of a published variant, not a ConformerConfig")
        from .download import fetch

        return fetch(name)
    if weights == "packaged":
        if name not in PACKAGED:
            raise CheckpointError(
                f"only {', '.join(PACKAGED)} has packaged weights, not {name}; pass a path or weights='pretrained'"
            )
        return existing_file(DATA / f"{name}.safetensors")
    return existing_file(weights)


def with_weights(
    config: ConformerConfig, found: Recognized, recipe: Recipe, features_only: bool, pad: Pad, like: Tensor
) -> Conformer:
    """A new model of these sizes with this state dict in it, of the dtype and on the device of `like`.

    The names and shapes are compared before memory is taken for it, and no random number is.
    Raises CheckpointError as `load_weights` does.
    """
    state_dict_in(found.state, ema=False)
    model = outline(config, features_only, pad).to(like.dtype)
    _fitting(found, model)
    model = in_memory(model, like.device)
    _copy(found, recipe, model)
    return model


def _fitting(found: Recognized, model: Conformer) -> tuple[dict[str, Tensor], int]:
    """The tensors meant for this model, each of the right shape, and how many keys of the file are not."""
    values, ignored = _select(found, model)
    check_coverage(found.dialect, values, model, lambda: _size_differences(found, model.config))
    return values, ignored


def _copy(found: Recognized, recipe: Recipe, model: Conformer) -> LoadReport:
    values, ignored = _fitting(found, model)
    try:
        recipe.check(model.config, heads=not model.features_only)
    except ArgumentError as error:
        raise CheckpointError(str(error)) from error
    parameters = model.state_dict()
    values = {name: checked_values(name, tensor, parameters[name].dtype) for name, tensor in values.items()}
    with torch.no_grad():
        for name, tensor in values.items():
            parameters[name].copy_(tensor)
    model.take_recipe(recipe)
    return LoadReport(found.dialect, len(values.keys() & found.state.keys()), ignored)


def _select(found: Recognized, model: Conformer) -> tuple[dict[str, Tensor], int]:
    """The tensors meant for this model, and how many keys of the file are not."""
    values = {name: tensor for name, tensor in found.state.items() if not name.endswith(COUNTER)}
    if not any(name.endswith(QKV_BIAS) for name in values):  # as the official class is by default
        weights = {name: values[name] for name in values if name.endswith(QKV_WEIGHT)}
        values |= {
            name.replace(QKV_WEIGHT, QKV_BIAS): weight.new_zeros(weight.shape[:1]) for name, weight in weights.items()
        }
    if model.features_only:
        kept = {name: tensor for name, tensor in values.items() if not name.startswith((*HEADS, "trans_norm."))}
        return kept, found.ignored + len(values) - len(kept)
    if found.num_classes is None:
        raise CheckpointError(
            f"{found.dialect} weights without classification heads; build the model with features_only=True, or a "
            f"detector with create_detector"
        )
    if found.num_classes != model.config.num_classes:
        raise CheckpointError(
            f"{found.dialect} weights for {found.num_classes} classes, but the model has {model.config.num_classes}; "
            f"build it with num_classes={found.num_classes}"
        )
    return values, found.ignored


def check_coverage(
    dialect: str, values: Mapping[str, Tensor], model: nn.Module, differences: Callable[[], list[str]]
) -> None:
    """Raises CheckpointError, with the first few names, unless `values` are a model's tensors by name and shape.

    dialect: whose names they had; differences: what else is known of why they do not fit, in words
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    shared = [name for name in wanted if name in values]
    problems = {
        "missing": [name for name in wanted if name not in values],
        "unexpected": [name for name in values if name not in wanted],
        "misshapen": [
            f"{name} {tuple(values[name].shape)} for {tuple(wanted[name])}"
            for name in shared
            if values[name].shape != wanted[name]
        ],
    }
    if not any(problems.values()):
        return
    matched = len(shared) - len(problems["misshapen"])
    text = [f"{dialect} weights do not fit: {matched} of the model's {len(wanted)} tensors match"]
    text += [f"{len(names)} {kind}: {first_few(names)}" for kind, names in problems.items() if names]
    raise CheckpointError("; ".join(text + differences()))


def _size_differences(found: Recognized, config: ConformerConfig) -> list[str]:
    """In words, for an error: what the file's own sizes are where they differ from the model's."""
    try:
        sizes = asdict(found.config(num_heads=1))
    except CheckpointError:
        return []
    return [
        f"the file has {name}={sizes[name]}, the model {name}={size}"
        for name, size in asdict(config).items()
        if name not in ("num_heads", "num_classes") and sizes[name] != size
    ]


def checked_values(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A file's tensor in this type. Raises CheckpointError unless it holds finite numbers, and variances no negative
    ones."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{shown(name)} holds {tensor.dtype} values, not weights in floating point")
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinite values as {dtype}; the checkpoint is damaged or diverged")
    if name.endswith("running_var") and (tensor < 0).any():
        raise CheckpointError(f"{name} holds a negative variance, {tensor.min():.3g}; the checkpoint is damaged")
    return tensor
