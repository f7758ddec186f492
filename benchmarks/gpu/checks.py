"""Every different operation of the networks, at its real size, against float64. It compiles their kernels too."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.judge import judge
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import chip_of
from conformer_fast.kernels.tiles import Tile

from .roofline import Operation, filled, network

DEVICE = "cuda"


def work(places: list[list[Any]]) -> list[tuple[str, int, Operation]]:
    """(variant, batch, operation) of each different problem in fp16, in the order of places: (variant, batch)."""
    first: dict[str, tuple[str, int, Operation]] = {}
    for variant, batch in places:
        for operation in network(variant, batch):
            first.setdefault(operation.problem, (variant, batch, operation))
    return list(first.values())


def run(places: list[list[Any]], shard: int, shards: int, done: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of every shards-th problem that is not `done`, and what is being checked now.

    A GPU that reports an error answers nothing more in this process, so that is the last: `broken`.
    """
    rows: list[dict[str, Any]] = []
    for variant, batch, operation in work(places)[shard::shards]:
        if operation.problem in done:
            continue
        now = {"variant": variant, "batch": batch, "problem": operation.problem}
        yield {"rows": rows, "now": now}
        start = time.perf_counter()
        try:
            row = _checked(operation)
        except Exception as failure:  # the others are checked all the same
            row = {"failed": f"{type(failure).__name__}: {str(failure).strip()}"[:300]}
        rows = [*rows, {**now, **row, "seconds": time.perf_counter() - start}]
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            yield {"rows": rows, "broken": True}
            return
    yield {"rows": rows}


@torch.inference_mode()
def _checked(operation: Operation) -> dict[str, Any]:
    arguments = filled(operation.arguments, DEVICE, 0)
    plan = dispatch.PLANS[operation.name](*arguments)
    choice, reason = dispatch.choose(plan, chip_of(torch.device(DEVICE)).name)
    if not isinstance(choice, Tile):
        return {"choice": choice, "reason": reason}
    verdicts = judge(operation.name, plan, arguments, choice)
    worst = max(verdicts, key=lambda verdict: verdict.error / verdict.bound if math.isfinite(verdict.error) else 1e9)
    row = {"choice": choice, "error": worst.error if math.isfinite(worst.error) else None, "bound": worst.bound}
    if not worst.within:
        row["failed"] = f"relative error {worst.error:.2e}, at most {worst.bound:.2e} is allowed"
    return row
