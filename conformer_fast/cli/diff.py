"""conformer-fast diff: where error comes in, by the same images through several implementations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import conformer_fast as cf

from ..engines.registry import IMPLEMENTATIONS, REFERENCE, RUNNERS
from ..model.config import ConformerConfig
from ..model.names import IN_8_BITS, PRECISIONS
from .arguments import (
    add_model,
    add_quantization,
    add_size,
    check_quantization,
    file,
    model_of,
    new_file,
    quantization_of,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

NOISE_IMAGES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs the same images through several implementations and compares what both branches and the coupling units "
        "of each block compute with the reference in float64. The status is 1 if a result is over its bound, 2 if "
        "nothing was compared."
    )
    add_model(parser)
    parser.add_argument(
        "--images", nargs="+", type=file, metavar="FILE", help=f"pictures (default: {NOISE_IMAGES} of noise)"
    )
    add_size(parser)
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=[precision for precision in PRECISIONS if precision not in IN_8_BITS],
        choices=PRECISIONS,
        metavar="PRECISION",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        metavar="NAME",
        help="of 'kernels', 'onnxruntime', 'engine' (what compile takes here) and the backends' names; PyTorch always "
        "runs. Default: all three, but the kernels on a GPU alone: their interpreter takes minutes an image of 224x224",
    )
    add_quantization(parser)
    parser.add_argument("--svg", type=new_file, metavar="OUT.svg", help="write the heat map of SQNR")


def run(options: argparse.Namespace) -> int:
    from ..model.recipe import input_side
    from ..storage.outputs import write_output
    from ..verification.heatmap import check_matplotlib
    from ..verification.implementations import usual

    check_quantization(options, options.precisions)
    if options.svg:
        check_matplotlib()
    implementations = options.implementations or usual()
    for name in implementations:
        _prepare(name)
    model = model_of(options)
    size = input_side(model.recipe, model.config, options.size)
    found = cf.diff(
        model,
        cf.load_batch(options.images, size, recipe=model.recipe) if options.images else _noise(model.config, size),
        [(implementation, precision) for precision in options.precisions for implementation in implementations],
        quantization=quantization_of(options, model, size),
    )
    name = options.model or Path(options.weights).name
    if options.svg:
        write_output(options.svg, found.svg(f"{name}: SQNR against the reference").encode())
    source = {"model": options.model, "weights": options.weights, "svg": options.svg}
    heat_map = f"\nheat map: {options.svg}" if options.svg else ""
    show(options, {**source, **found.to_dict()}, f"{found}{heat_map}")
    others = [column for column in found.columns if column.implementation != REFERENCE]
    if others and not any(column.report for column in others):
        return 2
    return 0 if found.within else 1


def _prepare(implementation: str) -> None:
    """Says if it takes minutes here. Nothing has imported what it runs yet."""
    from ..engines.registry import runner

    if implementation in RUNNERS:
        chosen = runner(implementation)
        chosen.prepare()
        if why := chosen.slow():
            print(why, file=sys.stderr)


def _noise(config: ConformerConfig, size: int) -> Tensor:
    import torch

    shape = NOISE_IMAGES, config.in_channels, size, size
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
