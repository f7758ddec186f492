"""What mmpretrain and its kin write beside the weights: class names, mean and std. It is read as data, never run.

mmengine's `meta` has dataset_meta: {"classes": names} or, once, {"CLASSES": names}, and cfg, the config's text; mmcv's
has CLASSES and config. Some have data_preprocessor.mean and .std in the state dict too.

Their mean and std are of pixels from 0 to 255, in the order of channels that the model reads: with to_rgb=True red,
green, blue, which is ours.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, shown
from ..model.recipe import Recipe
from .dialects import Recognized

WHITE = 255
DIGITS = 6  # of a mean that are kept: 123.675 as fp32 is 0.485 of white, as it was meant
MOST_CHARACTERS, MOST_SHOWN = 1 << 20, 400  # of a config, and of what cannot be used
_NUMBERS = r"""\b%s\b['"]? ?[=:] ?[\[(]([^\])]{1,500})[\])]"""
_TO_RGB = re.compile(r"""\b(?:bgr_)?to_rgb\b['"]? ?[=:] ?(\w{1,10})""")

CONVERT = "To write what is true into the file: conformer-fast convert, or convert(..., recipe=Recipe(...))"
SET = "Where that matters, set what is true: detector.recipe = Recipe(...)"  # a detector's file is not converted

Numbers = tuple[float, ...]


def recipe_beside(
    found: Recognized, state: Mapping[str, Tensor], meta: Mapping[str, Any], where: str, num_classes: int | None = None
) -> Recipe:
    """What can be used of it. Warns, in one line, of what is there and cannot.

    found, state: the weights, under the official names and under their own. where: for the warning. num_classes: of a
    detector, whose classes they are then
    """
    known: dict[str, Any] = {}
    unused = []
    for read in (lambda: _labels(num_classes or found.num_classes, meta), lambda: _normalization(found, state, meta)):
        try:
            known |= Recipe(**read()).known()
        except ArgumentError as error:
            unused.append(shown(error, MOST_SHOWN))
    if unused:
        advice = CONVERT if num_classes is None else SET
        warnings.warn(
            f"{where}: not used of what it says beside its weights: {'; '.join(unused)}. {advice}", stacklevel=1
        )
    return Recipe(**known)


def _labels(num_classes: int | None, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model with heads: a backbone's are those of its detector. Raises ArgumentError for what names no classes."""
    data = meta.get("dataset_meta")
    places = [data, meta] if isinstance(data, Mapping) else [meta]
    said = [place.get(key) for place in places for key in ("classes", "CLASSES")]
    names = next((names for names in said if names is not None), None)
    if names is None or num_classes is None:
        return {}
    if not isinstance(names, list | tuple):
        raise ArgumentError("its class names, which are no list")
    if len(names) != num_classes:
        raise ArgumentError(f"its {len(names)} class names, as the model has {num_classes} classes")
    return {"labels": names}


def _normalization(found: Recognized, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ArgumentError where it says more or less than one mean and std, or not of which pixels they are."""
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")[:MOST_CHARACTERS]
    means, stds = (_in_state(state, name) or _in_text(text, name) for name in ("mean", "std"))
    if not means and not stds:
        return {}
    if len(means) != 1 or len(stds) != 1:
        raise ArgumentError(f"its mean and std, of which it says {len(means)} and {len(stds)}")
    (mean,), (std,), channels = means, stds, found.config(num_heads=1).in_channels
    if not len(mean) == len(std) == channels:
        raise ArgumentError(f"its mean {mean} and std {std}, as the model reads {channels} channels")
    if max(std) <= 1:
        raise ArgumentError(f"its mean {mean} and std {std}, which may be of pixels from 0 to 255 or from 0 to 1")
    if set(_TO_RGB.findall(text)) != {"True"}:
        raise ArgumentError(
            f"its mean {mean} and std {std}, as it does not say to_rgb=True: the model may read blue, green, red, "
            f"where pictures here are red, green, blue"
        )
    return {name: [round(value / WHITE, DIGITS) for value in values] for name, values in (("mean", mean), ("std", std))}


def _in_state(state: Mapping[str, Tensor], name: str) -> set[Numbers]:
    tensors = (tensor for key, tensor in state.items() if key.endswith(f"data_preprocessor.{name}"))
    return {tuple(tensor.double().flatten()[:WHITE].tolist()) for tensor in tensors if tensor.numel()}


def _in_text(text: str, name: str) -> set[Numbers]:
    """The different lists of numbers that a config gives this name."""
    found = set()
    for listed in re.findall(_NUMBERS % name, text):
        try:
            found.add(tuple(float(number) for number in listed.split(",") if number.strip()))
        except ValueError:  # a name, not numbers
            continue
    return found - {()}
