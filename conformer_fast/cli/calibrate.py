"""The command that measures how a model is best put in 8 bits: conformer-fast calibrate."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibration.accuracy_gate import gate
from ..calibration.calibrate import METHOD, calibrate
from ..calibration.histograms import METHODS
from ..datasets.batches import Batches, images_in
from ..datasets.dataset import Dataset, open_dataset
from ..deploy.compile import compile
from ..engines.registry import BACKENDS, choose
from ..inference.lower import lower
from ..inference.quantization import Quantization, save_quantization
from ..model.precision import FORMATS
from ..model.reference import Conformer
from ..model.shapes import Shapes, usual_side
from ..storage.paths import cache_root
from ..verification.timing import time_in_turn
from .arguments import add_model_arguments, model_of, positive

IMAGES = 512
BATCH = 8


def add_calibrate(commands: Any, output: argparse.ArgumentParser) -> None:
    """Adds the command to the command line's; `output` has the options that every command has."""
    parser = commands.add_parser(
        "calibrate", parents=[output], help="measure how a model is best put in 8 bits, and what that costs"
    )
    parser.set_defaults(run=_calibrate)
    add_model_arguments(parser)
    parser.add_argument(
        "--data", required=True, metavar="DIR|FILE", help="pictures; with labels also tar or parquet files"
    )
    parser.add_argument("--labels-from-folders", action="store_true", help="the data has a folder a class, or labels")
    parser.add_argument("--labels", metavar="FILE", help="lines of a picture's name and its class's number or synset")
    parser.add_argument("--images", type=positive, default=IMAGES, metavar="N", help=f"evenly from all ({IMAGES})")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the model's input (default 224)")
    parser.add_argument("--precision", default="int8", choices=list(FORMATS))
    parser.add_argument("--method", default=METHOD, choices=list(METHODS), help=f"of the ranges (default {METHOD})")
    parser.add_argument(
        "--no-smoothquant", action="store_true", help="leave layer norms and their products as they are"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="of top-1 accuracy, or of agreement without labels; the most sensitive products go back to 16 bits",
    )
    parser.add_argument(
        "--timed", choices=list(BACKENDS), metavar="BACKEND", help="measure there what --max-drop costs in speed"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE.json", help="for --calibration of other commands"
    )


def _calibrate(options: argparse.Namespace) -> int:
    _check(options)
    model = model_of(options)
    size = options.size or usual_side(model.config)
    images: Batches
    labels = None
    if options.labels_from_folders or options.labels:
        dataset = open_dataset(options.data, options.labels, model.config.num_classes).evenly(options.images)
        images, labels = _Labeled(dataset, size), dataset.labels
    else:
        images = images_in(options.data, size, options.images, BATCH)
    fused = lower(model)
    quantization = calibrate(
        fused,
        images,
        precision=options.precision,
        method=options.method,
        smoothquant=not options.no_smoothquant,
        cache=cache_root() / "calibration",
    )
    lines = []
    if options.max_drop is not None:
        time = _timer(model, images[0], options.timed) if options.timed else None
        quantization, report = gate(fused, quantization, images, max_drop=options.max_drop, labels=labels, time=time)
        lines.append(str(report))
    file = save_quantization(quantization, options.output)
    if options.json:
        facts = {"file": str(file), "precision": quantization.precision, "products": _products(quantization)}
        print(json.dumps({**facts, "smoothed": list(quantization.smoothing), **quantization.origin}))
        return 0
    smoothed = f", {len(quantization.smoothing)} smoothed" if quantization.smoothing else ""
    lines.append(
        f"{file}: {len(_products(quantization))} products in {quantization.precision}{smoothed}, ranges by "
        f"{quantization.origin['method']} of {quantization.origin['images']} images"
    )
    print("\n".join(lines))
    return 0


def _check(options: argparse.Namespace) -> None:
    """What would otherwise be found out after minutes."""
    folder = Path(options.output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{options.output}: the folder {folder} does not exist; create it first")
    for name in ("labels", "labels_from_folders", "timed"):
        if getattr(options, name) and options.max_drop is None:
            raise ValueError(f"--{name.replace('_', '-')} is for the gate: give --max-drop too, such as 0.5")
    if options.timed:
        choose(options.timed, options.precision)
    if options.max_drop is not None and not options.max_drop >= 0:
        raise ValueError(f"--max-drop must be 0 or more percentage points, got {options.max_drop}")


def _products(quantization: Quantization) -> list[str]:
    return [name for name in quantization.ranges if not name.endswith(".addend")]


def _timer(
    model: Conformer, images: Tensor, backend: str
) -> Callable[[Quantization, Quantization], tuple[float, float]]:
    def time(before: Quantization, after: Quantization) -> tuple[float, float]:
        engines = {}
        for name, quantization in {"before": before, "after": after}.items():
            settings: dict[str, Any] = {"precision": quantization.precision, "calibration": quantization}
            if backend == "tensorrt":
                B, _, H, W = images.shape
                settings["profile"] = Shapes((1, B, B), (H, H, H), (W, W, W))
            engines[name] = compile(model, backend=backend, **settings)
        with torch.inference_mode():
            timings = time_in_turn(engines, images.to(engines["after"].device), rounds=9)
        return timings["before"].median, timings["after"].median

    return time


class _Labeled(Batches):
    """A data set's pictures, preprocessed, as batches (B, 3, size, size)."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __len__(self) -> int:
        return -(-len(self._dataset) // BATCH)

    def read(self, index: int) -> Tensor:
        chosen = range(len(self._dataset))[index * BATCH : (index + 1) * BATCH]
        return torch.stack([self._dataset.input(position, self._size) for position in chosen])

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(f"{self._size} {BATCH}".encode())
        for position in range(len(self._dataset)):
            digest.update(hashlib.sha256(self._dataset.read(position)).digest())
        return digest.hexdigest()
