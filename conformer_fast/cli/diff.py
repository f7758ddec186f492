"""The command that finds where error comes in: conformer-fast diff."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.config import ConformerConfig
from ..model.precision import DTYPES, PRECISIONS
from ..model.shapes import usual_side
from ..preprocessing.cpu import load_batch
from ..storage.atomic import replace_file
from ..verification.diff import REFERENCE, diff
from ..verification.heatmap import svg
from ..verification.implementations import INTERPRET, RUNNERS, interprets_kernels
from .arguments import add_calibration_arguments, add_model_arguments, calibration_of, model_of, positive

NOISE_IMAGES = 2


def add_diff(commands: Any, output: argparse.ArgumentParser) -> None:
    """Adds the command to the command line's; `output` has the options that every command has."""
    parser = commands.add_parser(
        "diff",
        parents=[output],
        help="compare implementations inside the network",
        description="Runs the same images through several implementations and compares what both branches and the "
        "coupling units of each block compute with the reference in float64. The status is 1 if a result is over its "
        "bound, 2 if nothing was compared.",
    )
    parser.set_defaults(run=_diff)
    add_model_arguments(parser)
    parser.add_argument("--images", nargs="+", metavar="FILE", help=f"pictures (default: {NOISE_IMAGES} of noise)")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the model's input (default 224)")
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=PRECISIONS, metavar="PRECISION")
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=[REFERENCE, *RUNNERS],
        metavar="NAME",
        help="of 'kernels', 'onnxruntime', 'engine' (what compile takes here) and the backends' names; PyTorch always "
        "runs. Default: all three, but the kernels on a GPU alone: their interpreter takes minutes an image of 224x224",
    )
    add_calibration_arguments(parser)
    parser.add_argument("--svg", metavar="OUT.svg", help="write the heat map of SQNR")


def _diff(options: argparse.Namespace) -> int:
    if options.svg and not Path(options.svg).parent.is_dir():
        raise ValueError(f"{options.svg}: the folder {Path(options.svg).parent} does not exist; create it first")
    implementations = options.implementations or _usual()
    if "kernels" in implementations and interprets_kernels() and not torch.cuda.is_available():
        os.environ.setdefault(INTERPRET, "1")  # nothing has imported the kernels yet
        print("no GPU: Triton's interpreter runs the kernels, for minutes an image of 224x224", file=sys.stderr)
    model = model_of(options)
    size = options.size or usual_side(model.config)
    found = diff(
        model,
        load_batch(options.images, size) if options.images else _noise(model.config, size),
        [(implementation, precision) for precision in options.precisions for implementation in implementations],
        calibration=calibration_of(options, size),
    )
    name = options.model or Path(options.weights).name
    if options.svg:
        replace_file(Path(options.svg), svg(found, f"{name}: SQNR against the reference").encode(), 0o666)
    if options.json:
        source = {"model": options.model, "weights": options.weights, "svg": options.svg}
        print(json.dumps({**source, **found.to_dict()}))
    else:
        print(found)
        if options.svg:
            print(f"heat map: {options.svg}")
    return 0 if found.within else 1


def _usual() -> list[str]:
    return [*([] if interprets_kernels() else ["kernels"]), "onnxruntime", "engine"]


def _noise(config: ConformerConfig, size: int) -> Tensor:
    shape = NOISE_IMAGES, config.in_channels, size, size
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
