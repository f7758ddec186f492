"""conformer-fast calibrate: how a model is best put in 8 bits."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import conformer_fast as cf

from ..engines.registry import BACKENDS
from ..errors import ArgumentError
from ..model.names import IN_8_BITS
from .arguments import add_model, add_size, file, model_of, new_file, positive, refuse, show
from .detectors import asks_for_detector

if TYPE_CHECKING:
    from ..calibration.accuracy_gate import GateReport

LIMIT = 512
BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DIR|FILE",
        help="pictures: a folder, tar or parquet files; without labels also picture files, folders, patterns, http(s) "
        "addresses, and - for the standard input",
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels-from-folders", action="store_true", help="the data has a folder a class, or labels")
    labels.add_argument(
        "--labels", type=file, metavar="FILE", help="lines of a picture's name and its class's number or synset"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help=f"at most so many pictures, evenly from all (default {LIMIT}; of a detector always 64)",
    )
    add_size(parser)
    parser.add_argument("--precision", default="int8", choices=IN_8_BITS)
    parser.add_argument(
        "--no-smoothquant", action="store_true", help="leave layer norms and their products as they are"
    )
    parser.add_argument(
        "--max-drop",
        type=_points,
        metavar="POINTS",
        help="of top-1 accuracy, or of agreement without labels; the most sensitive products go back to 16 bits",
    )
    parser.add_argument(
        "--timed", choices=list(BACKENDS), metavar="BACKEND", help="measure there what --max-drop costs in speed"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=new_file,
        required=True,
        metavar="FILE.json",
        help="for --quantization of other commands; written over if it is there",
    )


def run(options: argparse.Namespace) -> int:
    from ..inference.quantization import product_of

    reports: list[GateReport] = []
    of_detector = asks_for_detector(options)
    quantization = _of_detector(options) if of_detector else _of_conformer(options, reports)
    path = quantization.save(options.output)
    products = [name for name in quantization.ranges if product_of(name) == name]
    smoothed = f", {len(quantization.smoothing)} smoothed" if quantization.smoothing else ""
    images = quantization.origin["images"]
    what = f"{len(products)} products in {quantization.precision}{smoothed}"
    lines = [*map(str, reports), f"{path}: {what}, ranges of {images} {'image' if images == 1 else 'images'}"]
    facts = {"file": str(path), "precision": quantization.precision, "products": products}
    show(options, {**facts, "smoothed": list(quantization.smoothing), **quantization.origin}, "\n".join(lines))
    return 0 if all(report.holds for report in reports) else 1


def _of_detector(options: argparse.Namespace) -> cf.Quantization:
    from ..datasets.dataset import open_pictures

    given = ("model", "labels", "labels_from_folders", "limit", "size", "max_drop", "timed")
    refuse(options, given, "--weights is a detector's, which takes 64 pictures as they are")
    pictures = open_pictures(options.data)
    detector = cf.create_detector(weights=options.weights)
    return cf.calibrate(detector, pictures, precision=options.precision, smoothquant=not options.no_smoothquant)


def _of_conformer(options: argparse.Namespace, reports: list[GateReport]) -> cf.Quantization:
    from ..datasets.batches import DatasetBatches
    from ..datasets.dataset import PictureSet, open_dataset, open_pictures
    from ..engines.registry import choose
    from ..model.recipe import input_side
    from ..storage.paths import cache_root

    if options.max_drop is None:
        refuse(options, ("labels", "labels_from_folders", "timed"), "without --max-drop there is no gate to use it")
    if options.timed:
        choose(options.timed, options.precision)  # before a download
    labeled = options.labels_from_folders or options.labels
    if labeled and len(options.data) > 1:
        raise ArgumentError(f"labels are of one folder, tar or parquet file, and --data names {len(options.data)}")
    model = model_of(options)
    size = input_side(model.recipe, model.config, options.size)
    limit = options.limit or LIMIT
    pictures: PictureSet
    labels = None
    if labeled:
        classes = model.config.num_classes, model.recipe.labels
        dataset = open_dataset(options.data[0], options.labels, *classes).evenly(limit)
        pictures, labels = dataset, dataset.labels
    else:
        pictures = open_pictures(options.data).evenly(limit)
    return cf.calibrate(
        model,
        DatasetBatches(pictures, size, BATCH, model.recipe),
        precision=options.precision,
        smoothquant=not options.no_smoothquant,
        max_drop=options.max_drop,
        labels=labels,
        timed=options.timed,
        cache=cache_root() / "calibration",
        report=None if options.max_drop is None else reports.append,
    )


def _points(text: str) -> float:
    points = float(text)
    if not 0 <= points < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more percentage points, got {points}")
    return points
