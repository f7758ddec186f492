"""One implementation at one variant and batch: its error, then its speed, beside ours in turn."""

from __future__ import annotations

import copy
import itertools
import math
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import conformer_fast as cf
from benchmarks.recorded import IMAGE
from conformer_fast.inference.lower import lower
from conformer_fast.model.distance import relative_error

from . import clock, roofline
from .roofline import Ceilings
from .tree import ROOT

DEVICE = "cuda"
CALIBRATION_IMAGES = 4
EXACT_BATCH = 16  # images at a time in float64


@dataclass(frozen=True)
class Implementation:
    """how: what is measured, for the reader. build(model) sets it up; the model is its own, in fp32 on the GPU.

    Images come in fp16 and in the memory format that the implementation prefers.
    """

    how: str
    memory_format: torch.memory_format
    build: Callable[[cf.Conformer], Callable[[Tensor], cf.ConformerOutput]]
    precision: str = "fp16"


def _eager(model: cf.Conformer) -> Callable[[Tensor], cf.ConformerOutput]:
    torch.backends.cudnn.benchmark = True  # PyTorch's tuning guide, for inputs of one size
    return model.half().to(memory_format=torch.channels_last)


def _torch_compile(model: cf.Conformer) -> Callable[[Tensor], cf.ConformerOutput]:
    return torch.compile(_eager(model), dynamic=False)


def _max_autotune(model: cf.Conformer) -> Callable[[Tensor], cf.ConformerOutput]:
    compiled = torch.compile(_eager(model), dynamic=False, mode="max-autotune")

    def run(images: Tensor) -> cf.ConformerOutput:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's outputs, in the graph's memory, may go
        return compiled(images)

    return run


def _ours(model: cf.Conformer) -> Callable[[Tensor], cf.ConformerOutput]:
    return cf.compile(model, backend="triton", precision="fp16")


def _quantized(precision: str) -> Implementation:
    def build(model: cf.Conformer) -> Callable[[Tensor], cf.ConformerOutput]:
        noise = torch.randn(CALIBRATION_IMAGES, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
        calibration = cf.calibrate(lower(model), [noise], precision=precision)  # on the GPU, as `model` is
        return cf.compile(model, backend="triton", precision=precision, quantization=calibration)

    how = f'conformer_fast.compile(model, backend="triton", precision="{precision}", quantization=of noise)'
    return Implementation(how, torch.contiguous_format, build, precision)


IMPLEMENTATIONS = {
    "eager": Implementation("the reference, .half(), channels_last, cudnn.benchmark", torch.channels_last, _eager),
    "torch.compile": Implementation("torch.compile(eager, dynamic=False)", torch.channels_last, _torch_compile),
    "torch.compile max-autotune": Implementation(
        'torch.compile(eager, dynamic=False, mode="max-autotune"), with its CUDA graphs, '
        "cudagraph_mark_step_begin() before each call",
        torch.channels_last,
        _max_autotune,
    ),
    "ours": Implementation(
        'conformer_fast.compile(model, backend="triton", precision="fp16"), outputs copied out',
        torch.contiguous_format,
        _ours,
    ),
    "ours int8": _quantized("int8"),
    "ours fp8": _quantized("fp8"),
}


def warm(implementation: str, variant: str, batch: int) -> dict[str, Any]:
    """Compiles an implementation, which keeps what it compiled on disk; `measure` then finds it there."""
    chosen = IMPLEMENTATIONS[implementation]
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=DEVICE).half().to(memory_format=chosen.memory_format)
    with torch.inference_mode():
        _built(chosen, variant)(images)
    torch.cuda.synchronize()
    return {}


def measure(implementation: str, variant: str, batch: int, ceilings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one point, as results.ABOUT describes them."""
    chosen = IMPLEMENTATIONS[implementation]
    images = random_images(batch)
    exact = exact_logits(variant, images[0])
    batches = [batch.to(memory_format=chosen.memory_format) for batch in images]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    start = time.perf_counter()
    with torch.inference_mode():
        run = _built(chosen, variant)
        candidates = {implementation: endless(run, batches)}
        for _ in range(clock.WARM_UPS):  # compiles, records graphs
            candidates[implementation]()
        torch.cuda.synchronize()
        ready = time.perf_counter() - start
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        error = relative_error(run(batches[0]).logits, exact)
        peak = torch.cuda.max_memory_reserved() - before
        beside = {}
        if implementation != "ours":
            try:
                candidates["ours"] = endless(_built(IMPLEMENTATIONS["ours"], variant), images)
                candidates["ours"]()
            except Exception as failure:  # the peer's own figures stand
                candidates = {implementation: candidates[implementation]}
                beside["ours_failed"] = f"{type(failure).__name__}: {failure}"[:300]
        times = clock.in_turn(candidates)
    if len(times) == 2:
        beside = {"ours_ms": 1e3 * times["ours"].median, "ours_speedup": times["ours"].speedup}
    return {
        "how": chosen.how,
        **figures(times[implementation], variant, batch, chosen.precision, Ceilings(**ceilings)),
        "error": error if math.isfinite(error) else None,
        "peak_bytes": peak,
        "build_seconds": ready,
        **beside,
    }


def _built(chosen: Implementation, variant: str) -> Callable[[Tensor], cf.ConformerOutput]:
    with torch.inference_mode(False):
        return chosen.build(reference(variant).to(DEVICE))


def figures(times: clock.Times, variant: str, batch: int, precision: str, ceilings: Ceilings) -> dict[str, Any]:
    operations = roofline.network(variant, batch, precision)
    flops = sum(operation.count * operation.flops for operation in operations)
    moved = sum(operation.count * operation.bytes for operation in operations)
    floors = roofline.floors(variant, batch, precision, ceilings)
    return {
        "ms": 1e3 * times.median,
        "ms_low": 1e3 * times.low,
        "ms_high": 1e3 * times.high,
        "calls": times.calls,
        "images_per_second": batch / times.median,
        "tflops": flops / times.median / 1e12,
        "gbs": moved / times.median / 1e9,
        "flops": flops,
        "bytes": moved,
        "floor_ms": 1e3 * floors.floor,
        "launch_floor_ms": 1e3 * floors.launch,
        "dependent_launch_floor_ms": None if floors.dependent_launch is None else 1e3 * floors.dependent_launch,
        "fused_floor_ms": 1e3 * floors.fused,
        "share_of_floor": floors.floor / times.median,
        "share_of_fused_floor": floors.fused / times.median,
    }


def reference(variant: str) -> cf.Conformer:
    """A reference model of its own with the recipe's weights."""
    return copy.deepcopy(_filled(variant))


@cache
def _filled(variant: str) -> cf.Conformer:
    """With these weights scores are sane, unlike with freshly drawn ones."""
    tensor = runpy.run_path(str(ROOT / "tests" / "data" / "recipe.py"))["tensor"]
    with torch.inference_mode(False):
        model = cf.create_model(variant)
        for name, value in model.state_dict().items():
            value.copy_(torch.from_numpy(tensor(name, tuple(value.shape))))
    return model


def random_images(batch: int) -> list[Tensor]:
    """Different batches, together twice as large as the L2 cache."""
    size = batch * 3 * IMAGE * IMAGE * 2
    sets = max(2, math.ceil(2 * torch.cuda.get_device_properties().L2_cache_size / size))
    return list(torch.randn(sets, batch, 3, IMAGE, IMAGE, device=DEVICE).half())


def endless(run: Callable[[Tensor], Any], batches: list[Tensor]) -> Callable[[], Any]:
    """Calls `run` with the next batch each time."""
    order = itertools.cycle(batches)
    return lambda: run(next(order))


@torch.inference_mode()
def exact_logits(variant: str, images: Tensor) -> Tensor:
    """The reference's scores in float64."""
    model = reference(variant).double().to(DEVICE)
    return torch.cat([model(part.double()).logits for part in images.split(EXACT_BATCH)])
