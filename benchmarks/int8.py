"""Speed of INT8 on the CPU beside what stands around it, NNCF's and ONNX Runtime's INT8 of the unfused model:
int8.py OUT.json. Run by `make bench`.

All candidates take turns, each in a process of its own, on noise, which all quantizations are calibrated with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import conformer_fast as cf
from conformer_fast.engines.openvino.device import describe, native_precisions
from conformer_fast.engines.openvino.products import product_rates
from conformer_fast.engines.timing import time_in_turn

from .cpu import identity, product_floor
from .isolated import Clock, Isolated
from .peers import IN_8_BITS, PEERS, fastest_rest

ROUNDS = {1: 40, 8: 12}  # by batch


def main(path: Path) -> None:
    rest = fastest_rest()
    rates = product_rates((*native_precisions(), "int8"), torch.get_num_threads())
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"], "rest": rest, "product_rates": rates}
    report["speed"] = [
        row for variant in cf.VARIANTS for batch in ROUNDS for row in _speed(variant, batch, rest, rates)
    ]
    path.write_text(json.dumps(report, indent=1) + "\n")


def _speed(variant: str, batch: int, rest: str, rates: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    clock = Clock()
    with ExitStack() as running:
        names = (f"conformer_fast {rest}", *IN_8_BITS)
        peers = {name: running.enter_context(Isolated(name, variant, batch)) for name in names}
        calls = {name: clock.running(peer) for name, peer in peers.items()}
        timings = time_in_turn(calls, torch.empty(0), ROUNDS[batch], clock)
    for name, timing in timings.items():
        row = {"variant": variant, "batch": batch, "implementation": name, "seconds": timing.median}
        precision = PEERS[name].precision
        row["share_of_floor"] = product_floor(variant, batch, precision, rates, rest) / timing.median
        row["speedup"] = timing.speedup
        print(row, flush=True)
        yield row


if __name__ == "__main__":
    main(Path(sys.argv[1]))
