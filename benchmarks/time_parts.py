"""Where a batch's time goes on the CPU, from files to scores: time_parts.py OUT.json. Run by `make bench`.

Files, decoding and the network are timed as they run, in turn. How the network's time is split is what OpenVINO's own
profile says of each operation, in an engine on one thread for one image, of which a batch has one on each: what is
fused into an operation counts as that operation.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import ir
from conformer_fast.engines.openvino.device import PRECISIONS, describe
from conformer_fast.engines.openvino.engine import Computed, OpenVINOEngine
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.engines.timing import time_in_turn
from conformer_fast.inference.lower import lower
from conformer_fast.preprocessing.cpu import load_image, preprocess

from .cpu import identity
from .peers import fastest_rest
from .preprocessing import photo

BATCH, ROUNDS = 8, 12
SIDE = 224
DECODING, RESIZING = "decoding JPEGs", "resizing"
CONVOLUTIONS, PRODUCTS, ATTENTION, NORMS = "convolutions of maps", "products of tokens", "attention", "layer norms"
REST = "pooling, adding, moving"
PARTS = DECODING, RESIZING, CONVOLUTIONS, PRODUCTS, ATTENTION, NORMS, REST  # in the order of a bar


def main(path: Path) -> None:
    rest = fastest_rest()
    report = {**identity(), "openvino": describe()["openvino"], "batch": BATCH, "precision": rest}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{index}.jpg") for index in range(BATCH)]
        for index, file in enumerate(files):
            photo(500 + index, 375).save(file, quality=90)
        report["rows"] = list(rows(cf.VARIANTS, files, rest))
    path.write_text(json.dumps(report, indent=1) + "\n")


def rows(variants: Iterable[str], files: list[Path], rest: str) -> Iterator[dict[str, Any]]:
    """Of each variant the seconds that each of PARTS takes of a batch."""
    decoding = _decoding(files)
    for variant in variants:
        torch.manual_seed(0)
        made = ir.ir_of(onnx_from_model(lower(cf.create_model(variant)), products="conv").SerializeToString(), rest)
        engine = OpenVINOEngine(lambda made=made: made, Computed(rest, rest), kept=False)
        calls: dict[str, Callable[[Tensor], object]] = {"files": lambda _: cf.load_batch(files), "network": engine}
        found = time_in_turn(calls, cf.load_batch(files), ROUNDS)
        seconds = {DECODING: found["files"].median * decoding, RESIZING: found["files"].median * (1 - decoding)}
        for kind, share in _shares(made, rest).items():
            seconds[kind] = found["network"].median * share
        row = {"variant": variant, "seconds": {part: seconds[part] for part in PARTS}}
        print(row, flush=True)
        yield row


def _decoding(files: list[Path]) -> float:
    """The share of decoding in what becomes of a file before the network, by one core's time."""
    calls: dict[str, Callable[[Tensor], object]] = {
        "all": lambda _: [preprocess(load_image(file)) for file in files],
        "decoding": lambda _: [load_image(file) for file in files],
    }
    return 1 / time_in_turn(calls, torch.empty(0), ROUNDS, time.thread_time)["decoding"].speedup


def _shares(made: ir.IR, rest: str) -> dict[str, float]:
    """Of the network's time: of convolutions, products, attention, norms and the rest."""
    model = core().read_model(made.xml, bytes(made.weights))
    model.reshape([1, 3, SIDE, SIDE])
    options = {"INFERENCE_PRECISION_HINT": PRECISIONS[rest], "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
    request = core().compile_model(model, "CPU", {**options, "PERF_COUNT": "YES"}).create_infer_request()
    operations = {node.get_friendly_name(): node for node in model.get_ops()}
    seconds: Counter[str] = Counter(dict.fromkeys(PARTS[2:], 0.0))
    for done in range(1 + ROUNDS):
        request.infer([ov.Tensor(torch.zeros(1, 3, SIDE, SIDE).numpy())])
        for run in request.profiling_info if done else ():  # the first time warms up
            seconds[_kind(run, operations)] += run.real_time.total_seconds()
    whole = sum(seconds.values())
    return {kind: part / whole for kind, part in seconds.items()}


def _kind(run: ov.ProfilingInfo, operations: dict[str, ov.Node]) -> str:
    """Which of PARTS an operation that ran is of. The tokens' projections are convolutions of one row; attention alone
    multiplies and transposes."""
    if run.node_type == "Convolution":
        rows_and_columns = operations[run.node_name].input(0).get_partial_shape().to_shape()[2:]
        return PRODUCTS if 1 in rows_and_columns else CONVOLUTIONS
    if run.node_type == "FullyConnected":
        return PRODUCTS
    if run.node_type == "MVN":
        return NORMS
    return ATTENTION if any(word in run.node_name for word in ("MatMul", "Transpose", "Softmax")) else REST


if __name__ == "__main__":
    main(Path(sys.argv[1]))
