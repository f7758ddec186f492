"""conformer-fast bench: compiled models timed against eager PyTorch."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import conformer_fast as cf

from ..model.names import IN_8_BITS
from .arguments import add_engine, add_models, add_size, file, positive, refuse, row_by_row, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    add_engine(parser)
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8], metavar="N")
    add_size(parser)
    parser.add_argument(
        "--quantization",
        type=file,
        metavar="FILE",
        help="for int8 and fp8: which products are in 8 bits, as `conformer-fast calibrate` wrote it (default: all)",
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N")


def run(options: argparse.Namespace) -> int:
    precision = options.precision or "auto"
    if precision not in IN_8_BITS:
        refuse(options, ("quantization",), f"a quantization is for {' and '.join(IN_8_BITS)}")
    if len(options.models) > 1:
        refuse(options, ("quantization",), "a quantization is of one model, and --models has several")
    rows = cf.benchmark(
        options.models,
        options.batch,
        size=options.size,
        backend=options.backend or "auto",
        precision=precision,
        quantization=cf.Quantization.load(options.quantization) if options.quantization else None,
        rounds=options.rounds,
        each=row_by_row(options),
    )
    rows_as_json = [{**asdict(row), "images_per_second": row.images_per_second} for row in rows]
    sizes = ", ".join(dict.fromkeys(f"{row.size}x{row.size}" for row in rows))
    show(options, {"rows": rows_as_json}, f"{rows[-1].threads} threads, images of {sizes}, on {rows[-1].device}")
    return 0
