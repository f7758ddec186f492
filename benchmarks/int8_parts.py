"""What parts of the CPU's INT8 engine gain, each put in or left out in turn with the engine as it is: int8_parts.py
OUT.json. Run by `make bench`.

"attention" reads queries, keys and values in 8 bits, which engines have where the rest is in fp32; "maps" are added and
averaged in 8 bits (maps_in_8_bits.py); what is never negative has "unsigned" numbers, and without these averages are of
the maps themselves too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import ir
from conformer_fast.engines.openvino.device import describe
from conformer_fast.engines.openvino.engine import Computed, OpenVINOEngine
from conformer_fast.engines.timing import time_in_turn
from conformer_fast.inference.lower import lower

from .cpu import identity
from .int8 import ROUNDS
from .peers import fastest_rest, noise

AS_IT_IS = "as it is"
REWRITES = {"maps": ("add_in_convolutions", "average_in_8_bits"), "unsigned": ("use_all_numbers",)}


def main(path: Path) -> None:
    rest = fastest_rest()
    rows = [row for variant in cf.VARIANTS for row in _rows(variant, rest)]
    report = {**identity(), "openvino": describe()["openvino"], "rest": rest, "rows": rows}
    path.write_text(json.dumps(report, indent=1) + "\n")


def _rows(variant: str, rest: str) -> Iterator[dict[str, Any]]:
    """gain: of a part, the time without it over that with it."""
    torch.manual_seed(0)
    model = cf.create_model(variant)
    images = noise((3, 224, 224))
    quantization = cf.calibrate(model, [images], precision="int8")
    engines = {part: _changed(part, model, quantization, rest) for part in (AS_IT_IS, "attention", *REWRITES)}
    for batch, rounds in ROUNDS.items():
        timings = time_in_turn(engines, images[:batch], rounds)
        for part, timing in timings.items():
            if part != AS_IT_IS:
                put_in = part == "attention" and rest != "fp32"
                gain = timing.speedup if put_in else 1 / timing.speedup
                row = {"variant": variant, "batch": batch, "part": part, "gain": gain}
                print(row, flush=True)
                yield row


def _changed(part: str, model: cf.Conformer, quantization: cf.Quantization, rest: str) -> OpenVINOEngine:
    attended = (rest == "fp32") != (part == "attention")
    network = lower(model, quantization=quantization, attended=attended)
    graph = onnx_from_model(network, products="conv").SerializeToString()
    with ExitStack() as changed:
        for rewrite in REWRITES.get(part, ()):
            changed.enter_context(mock.patch.object(ir, rewrite, return_value=0))
        made = ir.ir_of(graph, "int8")
    return OpenVINOEngine(lambda: made, Computed("int8", rest), kept=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
