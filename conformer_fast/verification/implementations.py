"""What computes the inference model: Triton's kernels, ONNX Runtime on the exported graph, and the engines.

Each runs the same job and returns its values by name, so that they can be compared with each other (diff.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from ..deploy.compile import compile
from ..engines.onnx.export import graph_of
from ..engines.registry import BACKENDS
from ..errors import BackendError
from ..inference import ops
from ..inference.lower import lower
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.precision import DTYPES, tf32_as_asked
from ..model.reference import Conformer
from ..model.shapes import Shapes

INTERPRET = "TRITON_INTERPRET"


@dataclass(frozen=True)
class Job:
    """What is to be computed for images (B, in_channels, H, W) on the CPU, of an fp32 reference model: what it returns,
    `results`, and `inside` (names of InferenceConformer.outputs); how to quantize it, by precision."""

    reference: Conformer
    images: Tensor
    results: tuple[str, ...]
    inside: tuple[str, ...]
    quantizations: Mapping[str, Quantization]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order in which they are computed."""
        return (*self.inside, *(name for name in self.results if name not in self.inside))

    def fused(self) -> InferenceConformer:
        """The inference model that returns all of them, in fp32."""
        return lower(self.reference).with_outputs(self.names)


@dataclass(frozen=True)
class Ran:
    """A job done: what did it, in one word and in one line, and the values on the CPU, by name."""

    implementation: str
    how: str
    values: dict[str, Tensor]


def run(implementation: str, precision: str, job: Job) -> Ran:
    """Does the job. Raises BackendError or EngineError, with the reason, when `implementation`, one of RUNNERS, cannot
    be had here in this precision."""
    return RUNNERS[implementation](job, precision)


def interprets_kernels() -> bool:
    """Whether Triton's kernels would run in its interpreter on the CPU, as no GPU can take them."""
    return BACKENDS["triton"].missing() is not None


def _kernels(job: Job, precision: str) -> Ran:
    interpreted = interprets_kernels()
    if interpreted:
        _check_interpreter(precision)
    from ..kernels import dispatch

    device = "cpu" if interpreted else BACKENDS["triton"].device()
    dtype = DTYPES.get(precision, torch.float16)
    model = job.fused().in_precision(dtype)
    if precision in job.quantizations:
        model = model.quantized(job.quantizations[precision])
    model = model.to(device)
    calls = [node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_function"]
    total = sum(ops.operation_of(node) in ops.OPS for node in calls)
    unsupported: list[str] = []

    def decide(call: dispatch.Call) -> dispatch.Choice:
        progress.update()
        if call.plan.unsupported:
            unsupported.append(call.plan.unsupported)
            return dispatch.PYTORCH
        if interpreted:  # the fewest programs: each of their instructions takes as long for a small tile
            return max(call.plan.tiles, key=lambda tile: tile.m * tile.n)
        return call.plan.tiles[0] if call.choice == dispatch.PYTORCH else call.choice

    with (
        tqdm(
            total=total, desc=f"kernels {precision}", unit="call", disable=not sys.stderr.isatty(), leave=False
        ) as progress,
        torch.no_grad(),
        torch.autocast(torch.device(device).type, enabled=False),
        tf32_as_asked(dtype),
        ops.on_kernels(),
        dispatch.deciding(decide),
    ):
        values = model(job.images.to(device))
    how = "Triton's interpreter" if interpreted else torch.cuda.get_device_name(device)
    if unsupported:
        how += f"; {len(unsupported)} of {total} calls by PyTorch: {unsupported[0]}"
    return Ran("kernels", how, _by_name(job.names, values))


def _check_interpreter(precision: str) -> None:
    """Raises BackendError unless Triton's interpreter can compute in this precision here."""
    if find_spec("triton") is None:
        raise BackendError('triton not installed: pip install "conformer-fast[triton]"')
    if os.environ.get(INTERPRET, "").lower() not in ("1", "true", "on"):
        missing = BACKENDS["triton"].missing()
        raise BackendError(f"{missing}, and {INTERPRET}=1 is not set: with it, from the start, kernels are interpreted")
    if precision == "bf16":
        raise BackendError(
            "Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584); "
            "take fp16 or fp32, or a GPU"
        )


def _onnx_runtime(job: Job, precision: str) -> Ran:
    graph = graph_of(job.fused(), precision, job.quantizations.get(precision))
    from ..engines.onnx.runtime import run_graph

    values = run_graph(graph, job.images, job.names)
    return Ran("onnxruntime", "the exported graph, not optimized", _by_name(job.names, values))


def _engine(backend: str, job: Job, precision: str) -> Ran:
    options: dict[str, Any] = {}
    if precision in job.quantizations:
        options["calibration"] = job.quantizations[precision]
    if backend == "tensorrt":
        B, _, H, W = job.images.shape
        options["profile"] = Shapes((1, B, B), (H, H, H), (W, W, W))
    fast = compile(job.reference, backend=backend, precision=precision, **options)
    images = fast.as_input(job.images.to(fast.device))
    values: dict[str, Tensor] = {}
    for names in filter(None, (job.inside, job.results)):  # what is deployed is the engine with the results alone
        values |= _by_name(names, fast.engine(names)(images))
    return Ran(fast.settings.backend, fast.reason, values)


def _by_name(names: Sequence[str], values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in zip(names, values, strict=True)}


RUNNERS: dict[str, Callable[[Job, str], Ran]] = {
    "kernels": _kernels,
    "onnxruntime": _onnx_runtime,
    "engine": partial(_engine, "auto"),
    **{backend: partial(_engine, backend) for backend in BACKENDS if backend != "reference"},
}
