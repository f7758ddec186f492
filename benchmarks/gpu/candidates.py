"""Tiles, and PyTorch, for single problems of the networks: compiled by many processes, then measured by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from conformer_fast.engines.triton import tuning
from conformer_fast.inference import work
from conformer_fast.kernels import dispatch
from conformer_fast.model import functional as CF
from conformer_fast.storage.atomic import replace_file

from . import roofline

DEVICE = "cuda"
Place = list[Any]  # variant, batch, precision, problem


@torch.inference_mode()
def build(places: list[Place], shard: int, shards: int) -> dict[str, Any]:
    """Runs every shards-th candidate of these problems once, so that it lies compiled in Triton's cache. What fails
    here fails again, with a reason, where it is measured."""
    candidates = [(place, tile) for place in places for tile in _call(place, "meta").plan.tiles][shard::shards]
    failed = 0
    for place, tile in candidates:
        try:
            _call(place, DEVICE).run(tile)
            torch.cuda.synchronize()
        except Exception:  # whatever a compiler, a driver or a launch raises
            failed += 1
        torch.cuda.empty_cache()
    return {"candidates": len(candidates), "failed_candidates": failed}


def measure(places: list[Place], tables: str) -> Iterator[dict[str, Any]]:
    """Measures problem after problem; after each, this GPU's file in the folder `tables` has what was found so far."""
    device = torch.device(DEVICE, torch.cuda.current_device())
    gpu, timer, found = tuning.gpu_name(device), tuning.CUDATimer(device), []
    file = Path(tables, dispatch.file_name(gpu))
    file.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        with torch.inference_mode():
            call = _call(place, DEVICE)
            weights = {
                value.untyped_storage().data_ptr()
                for name, value in zip(_operation(place).arguments, call.pytorch.args, strict=True)
                if isinstance(value, torch.Tensor) and work.is_weight(name)
            }
            found.append(tuning.measured(call, timer, weights))
        replace_file(file, tuning.with_added(file.read_bytes() if file.exists() else None, gpu, found))
        yield {"file": str(file), "problems": [tuned.facts for tuned in found]}


def _call(place: Place, device: str) -> dispatch.Call:
    """A call that poses the problem, on random values."""
    operation = _operation(place)
    arguments = roofline.filled(operation.arguments, device, 0) if device != "meta" else [*operation.arguments.values()]
    plan = dispatch.PLANS[operation.name](*arguments)
    return dispatch.Call(operation.name, plan, partial(getattr(CF, operation.name), *arguments), plan.tiles[0], "")


def _operation(place: Place) -> roofline.Operation:
    *network, problem = place
    return _operations(*network)[problem]


@cache
def _operations(variant: str, batch: int, precision: str) -> dict[str, roofline.Operation]:
    return {operation.problem: operation for operation in roofline.network(variant, batch, precision)}
