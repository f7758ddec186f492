"""conformer-fast bench: compiled models timed against eager PyTorch, beside what this machine reaches at most."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from ..model.names import IN_8_BITS
from .arguments import add_engine, add_models, add_size, file, model_of, positive, refuse, row_by_row, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    add_models(which)
    which.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint, whose model is timed in their place; or 'pretrained', 'packaged' (digits), 'random'",
    )
    add_engine(parser)
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8], metavar="N")
    add_size(parser)
    parser.add_argument(
        "--quantization",
        type=file,
        metavar="FILE",
        help="for int8 and fp8: which products are in 8 bits, as `conformer-fast calibrate` wrote it (default: all)",
    )
    parser.add_argument(
        "--rounds", type=positive, default=10, metavar="N", help="so often each model is called (default 10)"
    )


def run(options: argparse.Namespace) -> int:
    precision = options.precision or "auto"
    if precision not in IN_8_BITS:
        refuse(options, ("quantization",), f"a quantization is for {' and '.join(IN_8_BITS)}")
    if len(options.models) > 1 and not options.weights:
        refuse(options, ("quantization",), "a quantization is of one model, and --models has several")
    rows = cf.benchmark(
        [_checkpoint(options)] if options.weights else options.models,
        options.batch,
        size=options.size,
        backend=options.backend or "auto",
        precision=precision,
        quantization=cf.Quantization.load(options.quantization) if options.quantization else None,
        rounds=options.rounds,
        each=row_by_row(options),
    )
    sizes = dict.fromkeys(f"{row.size}x{row.size} in {row.model}" for row in rows)
    below = [
        f"{rows[-1].threads} threads, images of {', '.join(sizes)}, on {rows[-1].device}",
        "eager: PyTorch in fp32; speed-up: the median, and between which two it lies, 95% sure",
        "drift: how much slower the machine became from the first third of the rounds to the last",
        "ceiling: share of the speed that this machine's best products and its memory would allow",
        *(remark for row in rows for remark in row.remarks),
    ]
    show(options, {"rows": [row.as_json() for row in rows]}, "\n".join(below))
    return 0


def _checkpoint(options: argparse.Namespace) -> cf.Conformer:
    options.model = "digits" if options.weights == "packaged" else None
    return model_of(options)
