"""conformer-fast detect: objects in pictures, with their boxes and masks."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conformer_fast as cf

from ..errors import ArgumentError, shown
from .arguments import add_bundle, add_engine, add_pictures, add_quantization, pictures_of, show
from .detectors import detector_of
from .drawings import add_save, drawn, places_of
from .forms import add_form, form_of, printed, say

if TYPE_CHECKING:
    from PIL import Image

    from ..datasets.dataset import PictureSet

EXAMPLE = "handwritten_digits.png"
ENDING = ".detected.png"
MIN_SCORE = 0.3
COLUMNS = ("picture", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2", "error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser, "handwritten digits on a texture, by the detector that ships, which never saw them")
    parser.add_argument(
        "--weights", metavar="FILE", help="a detector's checkpoint, or 'packaged' (digits scattered on textures)"
    )
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this detector's engines instead")
    parser.add_argument(
        "--min-score", type=share, default=MIN_SCORE, metavar="S", help=f"of what is shown (default {MIN_SCORE})"
    )
    add_form(parser)
    add_save(parser, ENDING)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    form = form_of(options)
    pictures = pictures_of(options, EXAMPLE, ("weights", "bundle"))
    if options.example:
        options.weights = "packaged"
    if (options.weights is None) == (options.bundle is None):
        raise ArgumentError("give either --weights or --bundle, a detector's")
    places = places_of(options.save, pictures, ENDING)
    detector = detector_of(options)
    damaged: list[cf.Damaged] = []
    found = _found(options, detector, pictures, places, damaged)
    if form in ("jsonl", "csv"):
        _print_rows(form, found, options.min_score)
        return 1 if damaged else 0
    entries = []
    for one, place in zip(found, places, strict=True):
        if isinstance(one, cf.DetectedPicture):
            objects = one.objects(options.min_score)
            saved = {} if place is None else {"saved": str(place)}
            entries.append({"path": one.path, "width": one.width, "height": one.height, "objects": objects, **saved})
            if form == "text":
                say(_text(one.path, objects, options.min_score, place))
    result = {
        "weights": options.weights,
        "bundle": options.bundle,
        "backend": detector.settings.backend.name,
        "precision": detector.settings.precision,
        "pictures": entries,
        "damaged": [{"path": one.path, "error": one.error} for one in damaged],
    }
    show(options, result, "")
    return 1 if damaged else 0


def _found(
    options: argparse.Namespace,
    detector: cf.FastDetector,
    pictures: PictureSet,
    places: Sequence[Path | None],
    damaged: list[cf.Damaged],
) -> Iterator[cf.DetectedPicture | cf.Damaged]:
    from ..deploy.detect import detected
    from ..deploy.draw import drawn as with_objects
    from ..model.detector.class_names import warn_of_assumptions

    def draw(image: Image.Image, one: cf.DetectedPicture) -> Image.Image:
        return with_objects(image, one.detections, one.labels, options.min_score)

    warn_of_assumptions(detector.recipe, detector.config)
    return drawn(options.command, detected(detector, pictures), places, draw, damaged)


def _text(path: str, objects: Sequence[dict[str, Any]], min_score: float, place: Path | None) -> str:
    lines = [shown(path, 1000)]
    for one in objects:
        sides = " ".join(f"{side:.0f}" for side in one["box"])
        lines.append(f"  {one['score']:7.2%}  {shown(one['label'])} ({one['index']})  {sides}")
    if not objects:
        lines.append(f"  nothing with a score of {min_score:g} or more")
    lines += [] if place is None else [f"  drawn in {shown(place, 1000)}"]
    return "\n".join(lines)


def _print_rows(form: str, each: Iterator[cf.DetectedPicture | cf.Damaged], min_score: float) -> None:
    """A line of JSON a picture; of CSV one an object, without masks, and one for a picture without objects."""
    from ..bulk.rows import MOST_LETTERS, as_text

    table = csv.writer(io.TextIOWrapper(printed(), "utf-8", newline="", write_through=True), lineterminator="\n")
    if form == "csv":
        table.writerow(COLUMNS)
    for one in each:
        row: dict[str, Any] = dict.fromkeys(("picture", "width", "height", "objects", "error"))
        if isinstance(one, cf.Damaged):
            row |= {"objects": [], "error": shown(one.error, MOST_LETTERS)}
        else:
            row |= {"width": one.width, "height": one.height, "objects": one.objects(min_score)}
        row["picture"] = as_text(one.path)
        if form == "jsonl":
            say(json.dumps(row))
            continue
        for it in row["objects"] or [None]:
            cells = [it["index"], it["label"], it["score"], *it["box"]] if it else [None] * 7
            table.writerow([row["picture"], row["width"], row["height"], *cells, row["error"]])
