"""conformer-fast predict: the likeliest classes of picture files."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import conformer_fast as cf

from .arguments import (
    ENGINE,
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_quantization,
    add_size,
    check_quantization,
    compiled,
    how,
    key_of,
    model_of,
    positive,
    refuse,
    show,
)

BATCH = 8  # images that an engine of a fixed batch is built for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this engine instead of a model")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to print an image (default 5)")
    add_size(parser)


def run(options: argparse.Namespace) -> int:
    fast = _fast(options)
    found = fast.predict(options.images, topk=options.topk, size=options.size)
    for error in found.damaged.values():
        print(f"conformer-fast predict: {error}", file=sys.stderr)
    result = {
        **{name: getattr(options, name) for name in ("model", "weights", "bundle")},
        "run": how(fast),
        "pictures": [
            {"path": picture.path, "top": [asdict(guess) for guess in picture.top]} for picture in found.pictures
        ],
        "damaged": [{"path": path, "error": error} for path, error in found.damaged.items()],
    }
    lines = []
    for picture in found.pictures:
        lines.append(picture.path)
        lines += [f"  {guess.probability:7.2%}  {guess.label} ({guess.index})" for guess in picture.top]
    show(options, result, "\n".join(lines))
    return 1 if found.damaged else 0


def _fast(options: argparse.Namespace) -> cf.FastConformer:
    """What classifies the images."""
    from ..model.shapes import usual_side

    if options.bundle:
        refuse(options, (*MODEL, *ENGINE), "--bundle says which model runs, and how")
        return cf.load(options.bundle, key=key_of(options.key))
    refuse(options, ("key",), "a key is for a --bundle")
    check_quantization(options, [options.precision])
    model = model_of(options)
    return compiled(model, options, options.size or usual_side(model.config), BATCH)
