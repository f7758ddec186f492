"""Where our time goes: every different operation of the network alone, in a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from conformer_fast.inference import work
from conformer_fast.kernels import dispatch
from conformer_fast.kernels import launch as launch_module
from conformer_fast.model import functional as CF

from . import clock, roofline
from .roofline import Ceilings, Operation

DEVICE = "cuda"
LEAST, MOST = 20, 200  # launches in one graph


def measure(variant: str, batch: int, precision: str, ceilings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The network's operations as far as they are measured, the one that loses most against its floor first."""
    limits, rows = Ceilings(**ceilings), []
    for operation in roofline.network(variant, batch, precision):
        with torch.inference_mode():
            rows.append(_row(operation, limits))
        yield _table(rows)


def _table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(row["count"] * row["us"] for row in rows)
    shares = [{**row, "share": row["count"] * row["us"] / total} for row in rows]
    shares.sort(key=lambda row: row["count"] * (row["floor_us"] - row["us"]))
    return {"sum_ms": total / 1e3, "operations": shares}


@torch.inference_mode()
def build(variant: str, batch: int, precision: str) -> dict[str, Any]:
    """Compiles what the network runs, into Triton's cache on disk."""
    for operation in roofline.network(variant, batch, precision):
        _run(operation.name, roofline.filled(operation.arguments, DEVICE, 0))
    torch.cuda.synchronize()
    return {}


@torch.inference_mode()
def run_once(variant: str, batch: int, precision: str, problems: list[str]) -> dict[str, Any]:
    """These operations once each, in order, after a warm-up, between marks at which a profiler starts and stops.

    kernels: (problem, name) of each kernel of ours that is launched, in order
    """
    operations = {operation.problem: operation for operation in roofline.network(variant, batch, precision)}
    launches, kernels = [], []
    for problem in problems:
        operation = operations[problem]
        arguments = roofline.filled(operation.arguments, DEVICE, 0)
        launches.append(partial(_run, operation.name, arguments))
        launches[-1]()
        with launch_module.recording() as recorded:
            launches[-1]()
        kernels += [(problem, launch.kernel.fn.__name__) for launch in recorded]
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    for launch in launches:
        launch()
        torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()
    return {"kernels": kernels}


def _row(operation: Operation, ceilings: Ceilings) -> dict[str, Any]:
    """As in the network: weights come from memory, since all others were read in between, and activations from the L2
    cache as far as they fit, since the operation before has just written them. PyTorch's row is the same call by
    functional.py."""
    launches = launches_of(operation)
    with dispatch.calls() as made:
        launches[0]()
    seconds, pytorch = clock.of_graph(launches), clock.of_graph([partial(_by_pytorch, launch) for launch in launches])
    floor = max(operation.floor(ceilings), ceilings.least_gap)
    return {
        "problem": operation.problem,
        "count": operation.count,
        "choice": made[0].choice,
        "reason": made[0].reason,
        "us": 1e6 * seconds,
        "pytorch_us": 1e6 * pytorch,
        **({"apart_us": 1e6 * clock.of_graph(list(map(_apart, launches)))} if operation.name == roofline.PAIR else {}),
        "gbs": operation.bytes / seconds / 1e9,
        "tflops": operation.flops / seconds / 1e12,
        "floor_us": 1e6 * floor,
        "times_floor": seconds / floor,
        "bound": operation.bound(ceilings),
    }


def _apart(launch: partial[Any]) -> Callable[[], Any]:
    """A pair of 1x1 convolutions as two kernels."""
    _, (x, weight, bias, residual, next_weight, next_bias, token_map, token_stride) = launch.args

    def run() -> Any:
        out = _run("conv1x1", [x, weight, bias, 1, True, residual])
        return out, _run("conv1x1", [out, next_weight, next_bias, 1, True, None, token_map, token_stride])

    return run


def _by_pytorch(launch: Callable[[], Any]) -> Any:
    with dispatch.deciding(lambda call: dispatch.PYTORCH):
        return launch()


def launches_of(operation: Operation) -> list[partial[Any]]:
    """The operation on the same activations and, each time, other weights, together twice as large as the L2 cache."""
    weights = {name: value for name, value in operation.arguments.items() if work.is_weight(name)}
    cache = torch.cuda.get_device_properties().L2_cache_size
    count = max(LEAST, min(MOST, math.ceil(2 * cache / operation.weights))) if operation.weights else LEAST
    arguments = dict(zip(operation.arguments, roofline.filled(operation.arguments, DEVICE, 0), strict=True))
    launches = []
    for seed in range(count):
        others = dict(zip(weights, roofline.filled(weights, DEVICE, seed), strict=True))
        launches.append(partial(_run, operation.name, list((arguments | others).values())))
    return launches


def _run(name: str, arguments: list[Any]) -> Any:
    return dispatch.run(name, getattr(CF, name), *arguments)
