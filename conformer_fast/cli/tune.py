"""conformer-fast tune: the fastest tile of each kernel on this GPU, kept for later programs."""

from __future__ import annotations

import argparse
import sys

import conformer_fast as cf

from ..model.names import PRECISIONS
from .arguments import add_models, add_size, positive, row_by_row, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8, 32, 128], metavar="N")
    add_size(parser)
    parser.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])


def run(options: argparse.Namespace) -> int:
    found = cf.tune(
        options.models,
        options.batch,
        size=options.size,
        precision=options.precision,
        each=row_by_row(options),
    )
    for name, batch in found.no_room:
        print(f"conformer-fast tune: {name}: the GPU has no room for a batch of {batch}", file=sys.stderr)
    result = {
        "gpu": found.gpu,
        "precision": found.precision,
        "file": str(found.file),
        "tuned": [tuned.facts for tuned in found.tuned],
        "no_room": [{"model": name, "batch": batch} for name, batch in found.no_room],
    }
    show(options, result, str(found))
    return 1 if found.no_room else 0
