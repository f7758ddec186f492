"""predict(): the likeliest classes of picture files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..datasets.dataset import PictureSet, open_files
from ..engines.module import EngineModule
from ..errors import ArgumentError, ImageError, path_text, several, shown, whole
from ..model.outputs import LOGITS, SUM
from ..model.recipe import Recipe
from ..preprocessing.cpu import preprocess
from ..progress import Bar
from .damaged import Damaged

BATCH = 8  # pictures decoded and run together


@dataclass(frozen=True)
class Guess:
    """A class of a picture, by its number and its name, and how likely the model holds it to be, from 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of the picture at `path`, best first."""

    path: str
    top: tuple[Guess, ...]


@dataclass(frozen=True)
class Predictions:
    """What `predict` found: pictures: those that could be used, in their order; damaged: the others' paths and what is
    wrong with them."""

    pictures: tuple[Prediction, ...]
    damaged: dict[str, str]


def predict(
    model: EngineModule,
    paths: Sequence[str | os.PathLike[str]],
    labels: Sequence[str],
    *,
    topk: int = 5,
    size: int | None = None,
) -> Predictions:
    """Classifies picture files by the published preprocessing. One that cannot be used costs only itself.

    labels: one name a class
    topk:   classes of each picture; all of them if the model has fewer
    size:   side of the model's input in pixels; default: what the engine is tuned for, or the model was trained on

    Raises ArgumentError when topk or size is not positive, for a model without scores or that reads no pictures, for a
    size that it does not take, and when a score is NaN or infinite; ArgumentTypeError for a single path, and for
    what is none.
    """
    pictures = open_files([path_text("a picture", path) for path in several("paths", paths)])
    found: list[Prediction] = []
    damaged: dict[str, str] = {}
    for one, _ in predicted(model, pictures, labels, topk=topk, size=size, keep=False):
        if isinstance(one, Damaged):
            damaged[one.path] = one.error
        else:
            found.append(one)
    return Predictions(tuple(found), damaged)


def predicted(
    model: EngineModule, pictures: PictureSet, labels: Sequence[str], *, topk: int, size: int | None, keep: bool
) -> Iterator[tuple[Prediction | Damaged, Image.Image | None]]:
    """One result a picture, in their order, with the picture that it is of, if these are to be kept until then. The
    rest is as for `predict`."""
    topk = whole("topk", topk)
    check_model(model)
    size = model.input_side(size)
    batch = model.at_once(BATCH)
    load = partial(_loaded, pictures, size=size, recipe=model.recipe, keep=keep)
    with Bar("predicting", len(pictures), "picture") as progress, ThreadPoolExecutor(batch) as pool:
        for start in range(0, len(pictures), batch):
            group = range(len(pictures))[start : start + batch]
            names = [picture.name for picture in pictures.pictures[start : start + batch]]
            yield from _of_group(model, names, list(pool.map(load, group)), labels, topk)
            progress.update(len(group))


def _of_group(
    model: EngineModule,
    names: Sequence[str],
    loaded: Sequence[tuple[Image.Image | None, Tensor] | Damaged],
    labels: Sequence[str],
    topk: int,
) -> Iterator[tuple[Prediction | Damaged, Image.Image | None]]:
    """Of pictures that run together. A function, as its end lets go of them before the next are decoded."""
    tensors = [one[1] for one in loaded if not isinstance(one, Damaged)]
    tops: Iterator[tuple[Guess, ...]] = iter(())
    if tensors:
        images = torch.stack(tensors).to(model.device)
        tops = top_classes(summed(model, model.run(images)), labels, topk)
    for name, one in zip(names, loaded, strict=True):
        if isinstance(one, Damaged):
            yield one, None
        else:
            yield Prediction(name, next(tops)), one[0]


def check_model(model: EngineModule) -> None:
    """Raises ArgumentError for a model without scores, or that reads no pictures."""
    if not (set(LOGITS) <= set(model.outputs) or SUM in model.outputs):
        raise ArgumentError(f"the model returns {', '.join(model.outputs)}; predict needs {', '.join(LOGITS)} or {SUM}")
    if model.config.in_channels != 3:
        raise ArgumentError(
            f"pictures have 3 channels, the model reads {model.config.in_channels}; predict cannot run it"
        )


def _loaded(
    pictures: PictureSet, index: int, size: int, recipe: Recipe, keep: bool
) -> tuple[Image.Image | None, Tensor] | Damaged:
    name = pictures.pictures[index].name
    try:
        image = pictures.load(index)
    except ImageError as error:
        return Damaged(name, str(error))
    try:
        return image if keep else None, preprocess(image, size, recipe=recipe)
    except ImageError as error:
        return Damaged(name, f"{shown(name)}: {error}")


def summed(model: EngineModule, outputs: Sequence[Tensor]) -> Tensor:
    """Both heads' summed scores, of what the model returned."""
    values = dict(zip(model.outputs, outputs, strict=True))
    return values[SUM] if SUM in values else values[LOGITS[0]] + values[LOGITS[1]]


def check_finite(scores: Tensor) -> None:
    """Raises ArgumentError for scores that are NaN or infinite."""
    if not scores.isfinite().all():
        raise ArgumentError(
            "the model's scores are NaN or infinite, beyond the precision's range; use bf16 or fp32, or check the "
            "weights"
        )


def top_classes(logits: Tensor, labels: Sequence[str], topk: int) -> Iterator[tuple[Guess, ...]]:
    """The likeliest classes of each image. Raises ArgumentError for scores that are NaN or infinite."""
    check_finite(logits)
    best = logits.softmax(-1).topk(min(topk, logits.shape[-1]))
    for probabilities, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = zip(indices, probabilities, strict=True)
        yield tuple(Guess(index, labels[index], probability) for index, probability in pairs)
