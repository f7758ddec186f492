"""conformer-fast predict: the likeliest classes of picture files."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

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

EXAMPLE = "handwritten_7.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser, "a handwritten 7, by the digits model, which never saw it")
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this engine instead of a model")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to print an image (default 5)")
    add_size(parser)


def run(options: argparse.Namespace) -> int:
    from ..deploy.predict import BATCH

    paths = pictures_of(options, EXAMPLE, (*MODEL, "bundle", "size"))
    if options.example:
        options.model = "digits"
    if options.bundle:
        refuse(options, MODEL, "--bundle says which model runs")
    fast = bundled(options) if options.bundle else compiled(options, BATCH)
    found = fast.predict(paths, topk=options.topk, size=options.size)
    for error in found.damaged.values():
        print(f"conformer-fast predict: {shown(error, 1000)}", file=sys.stderr)
    result = {
        **{name: getattr(options, name) for name in ("model", "weights", "bundle")},
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "device": str(fast.device),
        "pictures": [
            {"path": picture.path, "top": [asdict(guess) for guess in picture.top]} for picture in found.pictures
        ],
        "damaged": [{"path": path, "error": error} for path, error in found.damaged.items()],
    }
    lines = []
    for picture in found.pictures:
        lines.append(shown(picture.path, 1000))
        lines += [f"  {guess.probability:7.2%}  {shown(guess.label)} ({guess.index})" for guess in picture.top]
    show(options, result, "\n".join(lines))
    return 1 if found.damaged else 0
