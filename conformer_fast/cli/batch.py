"""conformer-fast batch: the likeliest classes of many pictures, in a file."""

from __future__ import annotations

import argparse
import sys

import conformer_fast as cf

from ..errors import ArgumentError, BackendError, shown
from .arguments import (
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_quantization,
    add_size,
    bundled,
    compiled,
    positive,
    refuse,
    show,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        nargs="+",
        metavar="SOURCE",
        help="a folder of pictures, tar or parquet files; or picture files, folders, patterns, http(s) addresses, and "
        "- for the standard input; no labels needed",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=results, metavar="FILE", help="a new .jsonl, .csv or .parquet file"
    )
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this engine instead of a model")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes of each picture (default 5)")
    add_size(parser)
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures run together (default 32)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode; 0: none of their own")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, or without one on this machine",
    )
    parser.add_argument("--cores", type=positive, metavar="N", help="of each of Ray's actors (default 4)")


def results(text: str) -> str:
    """The path of a file of results to write, in a folder that is there."""
    from ..bulk.results import check_results

    try:
        check_results(text)
    except (ArgumentError, BackendError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def run(options: argparse.Namespace) -> int:
    from ..bulk.batch import BATCH

    if options.bundle:
        refuse(options, MODEL, "--bundle says which model runs")
    fast = bundled(options) if options.bundle else compiled(options, options.batch or BATCH)
    names = "topk", "size", "batch", "workers", "ray", "cores"
    found = cf.batch(fast, options.data, options.output, **{name: getattr(options, name) for name in names})
    for error in found.damaged.values():
        print(f"conformer-fast batch: {shown(error, 1000)}", file=sys.stderr)
    source = {name: getattr(options, name) for name in ("model", "weights", "bundle")}
    show(options, {**source, **found.to_dict()}, str(found))
    return 1 if found.damaged else 0
