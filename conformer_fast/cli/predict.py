"""conformer-fast predict: the likeliest classes of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import conformer_fast as cf

from ..errors import shown
from .arguments import (
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_pictures,
    add_quantization,
    add_size,
    bundled,
    compiled,
    pictures_of,
    positive,
    refuse,
    show,
)
from .drawings import add_save, drawn, places_of
from .forms import add_form, form_of, printed, say

if TYPE_CHECKING:
    from PIL import Image

    from ..bulk.rows import Row
    from ..datasets.dataset import PictureSet

EXAMPLE = "handwritten_7.png"
ENDING = ".predicted.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser, "a handwritten 7, by the digits model, which never saw it")
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this engine instead of a model")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to print an image (default 5)")
    add_size(parser)
    add_form(parser)
    add_save(parser, ENDING)


def run(options: argparse.Namespace) -> int:
    from ..bulk.results import WRITERS
    from ..deploy.predict import BATCH

    form = form_of(options)
    pictures = pictures_of(options, EXAMPLE, (*MODEL, "bundle", "size"))
    if options.example:
        options.model = "digits"
    if options.bundle:
        refuse(options, MODEL, "--bundle says which model runs")
    if options.weights == "random":
        refuse(options, ("save",), "random weights find nothing to draw")
    places = places_of(options.save, pictures, ENDING)
    fast = bundled(options) if options.bundle else compiled(options, BATCH)
    damaged: list[cf.Damaged] = []
    found = _found(options, fast, pictures, places, damaged)
    if form in ("jsonl", "csv"):
        WRITERS[f".{form}"](printed(), map(_row, found), min(options.topk, fast.config.num_classes))
        return 1 if damaged else 0
    predictions = []
    for one, place in zip(found, places, strict=True):
        if isinstance(one, cf.Prediction):
            saved = {} if place is None else {"saved": str(place)}
            predictions.append({"path": one.path, "top": [asdict(guess) for guess in one.top], **saved})
            if form == "text":
                say(_text(one, place, options.weights == "random"))
    result = {
        **{name: getattr(options, name) for name in ("model", "weights", "bundle")},
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "device": str(fast.device),
        "pictures": predictions,
        "damaged": [asdict(one) for one in damaged],
    }
    show(options, result, "")
    return 1 if damaged else 0


def _found(
    options: argparse.Namespace,
    fast: cf.FastConformer,
    pictures: PictureSet,
    places: Sequence[Path | None],
    damaged: list[cf.Damaged],
) -> Iterator[cf.Prediction | cf.Damaged]:
    from ..deploy.draw import captioned
    from ..deploy.predict import predicted
    from ..model.recipe import shown_labels

    def draw(image: Image.Image, one: cf.Prediction) -> Image.Image:
        return captioned(image, one.top[0].label, one.top[0].probability)

    shown_labels(fast.recipe, fast.config)  # warns
    each = predicted(fast, pictures, fast.labels, topk=options.topk, size=options.size, keep=options.save is not None)
    return drawn(options.command, each, places, draw, damaged)


def _row(found: cf.Prediction | cf.Damaged) -> Row:
    """As `batch` has them."""
    from ..bulk.rows import row_of

    if isinstance(found, cf.Damaged):
        return row_of(found.path, error=found.error)
    return row_of(found.path, found.top)


def _text(found: cf.Prediction, place: Path | None, random: bool) -> str:
    lines = [shown(found.path, 1000) + (" (random weights: the classes mean nothing)" if random else "")]
    lines += [f"  {guess.probability:7.2%}  {shown(guess.label)} ({guess.index})" for guess in found.top]
    lines += [] if place is None else [f"  drawn in {shown(place, 1000)}"]
    return "\n".join(lines)
