"""conformer-fast export: the typed ONNX graph alone."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from .arguments import (
    add_quantization,
    add_size,
    check_quantization,
    model_of,
    new_file,
    quantization_of,
    refuse,
    show,
)
from .build import add_graph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_graph(parser)
    add_quantization(parser)
    add_size(parser)
    parser.add_argument(
        "-o", "--output", type=new_file, required=True, metavar="FILE.onnx", help="written over if it is there"
    )


def run(options: argparse.Namespace) -> int:
    from ..checkpoints.adopt import adopt

    check_quantization(options, [options.precision])
    if not options.calibration:
        refuse(options, ("size",), "the graph takes images of any size, and only --calibration's pictures have one")
    model = model_of(options, options.features)
    path = cf.export(
        model,
        options.output,
        precision=options.precision,
        outputs=options.outputs,
        quantization=quantization_of(options, model, options.size),
    )
    size, outputs = path.stat().st_size, list(options.outputs or adopt(model).outputs)
    result = {"file": str(path), "bytes": size, "precision": options.precision, "outputs": outputs}
    show(options, result, f"{path}: {size / 1e6:.1f} MB, {options.precision}, outputs {', '.join(outputs)}")
    return 0
