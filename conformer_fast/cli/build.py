"""conformer-fast build: a TensorRT engine, as a bundle."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

import conformer_fast as cf

from ..engines.registry import AHEAD
from ..errors import ArgumentError
from ..model.names import PRECISIONS
from . import detectors
from .arguments import (
    add_key,
    add_model,
    add_quantization,
    check_quantization,
    file,
    key_of,
    lines_of,
    model_of,
    quantization_of,
    refuse,
    show,
)

if TYPE_CHECKING:
    from ..datasets.batches import Pictures
    from ..model.shapes import Range


def add_graph(parser: argparse.ArgumentParser) -> None:
    """What is computed: the arguments of `build` and `export`."""
    add_model(parser)
    parser.add_argument("--precision", default="fp16", choices=PRECISIONS)
    parser.add_argument("--features", action="store_true", help="a backbone: feature maps and tokens, no scores")
    parser.add_argument("--outputs", type=_names, metavar="NAME,NAME", help="such as 'logits', the sum of both heads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_graph(parser)
    add_quantization(parser)
    parser.add_argument(
        "--size",
        type=_range,
        metavar="N|N,N,N",
        help="image side: smallest, tuned for, largest (default: that of its training; of a detector all it fits)",
    )
    parser.add_argument(
        "--batch",
        type=_range,
        metavar="N|N,N,N",
        help="smallest, tuned for, largest (default: 1,8,64; of a detector 1)",
    )
    parser.add_argument(
        "--target", type=_names, default=(), metavar="SM,SM", help="such as sm86,sm120 (default: the GPU here)"
    )
    parser.add_argument("--flavor", default="auto", metavar="NAME", help="tensorrt, tensorrt-rtx or auto (default)")
    parser.add_argument(
        "--class-names",
        type=file,
        metavar="FILE",
        help="of the classes, one a line (default: what the weights say, else ImageNet's)",
    )
    add_key(parser, "signs the bundle: a secret, or the PEM file of a private key (Ed25519)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")


def run(options: argparse.Namespace) -> int:
    from ..bundles.folder import check_writable, read_bundle
    from ..engines.base import Settings
    from ..engines.registry import format_of, make
    from ..model.outputs import LOGITS, SUM

    check_quantization(options, [options.precision])
    if not {*LOGITS, SUM} & set(options.outputs or (() if options.features else LOGITS)):
        refuse(options, ("class_names",), "only scores have classes, and none of the outputs are scores")
    key = key_of(options.key)
    backend = make(AHEAD, {"targets": options.target, "flavor": options.flavor})
    backend.check(Settings(backend, options.precision))  # before a download
    check_writable(options.output, key)
    of_detector = not options.features and detectors.asks_for_detector(options)
    model, shapes, quantization = _detector(options) if of_detector else _conformer(options)
    folder = cf.build(
        model,
        options.output,
        shapes=shapes,
        flavor=options.flavor,
        targets=options.target,
        precision=options.precision,
        outputs=options.outputs,
        quantization=quantization,
        key=key,
        labels=lines_of(options.class_names) if options.class_names else None,
        rebuild=_again(options),
    )
    manifest = read_bundle(folder, format_of).manifest
    runtime, size = manifest.runtime, sum(stored.bytes for stored in manifest.files.values())
    lines = [
        f"{folder}: {size / 1e6:.1f} MB, {runtime['flavor']} {runtime['version']}, {', '.join(runtime['targets'])}"
    ]
    if manifest.measured:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in manifest.measured["error"].items())
        by, images = manifest.measured["runtime"], f"{manifest.measured['images']} of {manifest.measured['source']}"
        lines.append(f"error of the graph ({by['name']} {by['version']}, {images}): {errors}")
    show(options, {"folder": str(folder), **manifest.to_json()}, "\n".join(lines))
    return 0


def _conformer(
    options: argparse.Namespace,
) -> tuple[cf.Conformer, list[cf.Shapes], cf.Quantization | Pictures | None]:
    """The model, the shapes that its engine takes, and how to quantize it."""
    from ..model.recipe import input_side

    model = model_of(options, options.features)
    tuned = input_side(model.recipe, model.config, options.size and options.size[1])
    side = options.size or (tuned,) * 3
    return model, [cf.Shapes(options.batch or (1, 8, 64), side, side)], quantization_of(options, model, tuned)


def _detector(options: argparse.Namespace) -> tuple[cf.Detector, list[cf.Shapes], cf.Quantization | str | None]:
    """The same of a detector; without shapes it takes single images of up to 1344 x 1344."""
    refuse(options, ("model", "outputs", "calibration_limit"), "--weights is a detector's")
    batch, side = options.batch or (1, 1, 1), options.size
    if options.batch and not side:
        raise ArgumentError("--batch of a detector needs the --size of its images too")
    shapes = [cf.Shapes(batch, side, side)] if side else []
    return cf.create_detector(weights=options.weights), shapes, detectors.asked_quantization(options)


def _again(options: argparse.Namespace) -> str:
    """The command that builds the same for the GPU where it is given."""
    words = ["conformer-fast", "build"]
    for name, value in vars(options).items():
        if value and name not in ("command", "json", "target"):
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return shlex.join(words)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _range(text: str) -> Range:
    """One number, or smallest, tuned for and largest."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise argparse.ArgumentTypeError(f"must be one number, or three that do not fall such as 1,8,32; got {text!r}")
    return numbers[0], numbers[1], numbers[2]
