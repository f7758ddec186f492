"""Sizes and build times of TensorRT-RTX engines: engines_report.py OUT.json. Run by `make bench`; needs no GPU.

The weights are random and 8-bit engines calibrated on noise: neither changes how large an engine is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import conformer_fast as cf
from conformer_fast.engines.onnx.graph import typed_graph
from conformer_fast.engines.openvino.device import describe
from conformer_fast.engines.tensorrt.flavors import Flavor, get_flavor
from conformer_fast.engines.tensorrt.plan import engine_from_onnx
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.shapes import Shapes


class Engine(NamedTuple):
    """What is built."""

    variant: str
    precision: str
    targets: tuple[str, ...]
    shapes: Shapes = Shapes()


SIZES = Shapes(batch=(1, 8, 32), height=(160, 224, 320), width=(160, 224, 320))
EVERY_TARGET = ("sm80", "sm86", "sm89", "sm120")
ENGINES = (
    *(Engine(variant, "fp16", ("sm86",)) for variant in cf.VARIANTS),
    Engine("tiny-p16", "bf16", ("sm86",)),
    *(Engine(variant, "int8", ("sm86",)) for variant in ("tiny-p16", "small-p16")),
    *(Engine(variant, "fp8", ("sm89", "sm120")) for variant in ("tiny-p16", "small-p16")),
    Engine("small-p16", "fp16", EVERY_TARGET),
    Engine("small-p16", "fp16", ("sm89",), SIZES),
)


def main(path: Path) -> None:
    flavor = get_flavor("tensorrt-rtx")
    machine = {"cpu": describe()["device"], "threads": torch.get_num_threads()}
    rows = [row for _, row in build(flavor, ENGINES)]
    report = {"flavor": flavor.name, "version": flavor.version, **machine, "engines": rows}
    path.write_text(json.dumps(report, indent=1) + "\n")


def build(flavor: Flavor, engines: Iterable[Engine]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each engine's plan and its figures, printed as they come."""
    for engine in engines:
        onnx = onnx_of(engine)
        start = time.perf_counter()
        plan = engine_from_onnx(onnx, [engine.shapes], flavor, engine.targets, engine.precision)
        seconds = round(time.perf_counter() - start, 1)
        row = {**engine._asdict(), "shapes": engine.shapes.to_json(), "plan_bytes": len(plan)}
        row |= {"onnx_bytes": len(onnx), "seconds": seconds}
        print(row, flush=True)
        yield plan, row


def onnx_of(engine: Engine) -> bytes:
    """The typed graph, with random weights; in 8 bits calibrated with noise."""
    torch.manual_seed(0)
    model, quantization = cf.create_model(engine.variant), None
    if engine.precision in FORMATS:
        quantization = cf.calibrate(model, [torch.randn(1, 3, 64, 64)], precision=engine.precision)
    return typed_graph(model, LOGITS, engine.precision, quantization)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
