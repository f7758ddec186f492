"""What computes the inference model: Triton's kernels, ONNX Runtime on the exported graph, and the engines.

Each runs the same job and returns its values by name, so that they can be compared with each other (diff.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..engines.base import Settings
from ..engines.onnx.graph import typed_graph
from ..engines.registry import BACKENDS, choose
from ..inference.quantization import Quantization
from ..model.reference import Conformer

REFERENCE = "reference"  # PyTorch's own run, which judges the others


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


@dataclass(frozen=True)
class Ran:
    """A job done: what did it, in one word and in one line, and the values on the CPU, by name."""

    implementation: str
    how: str
    values: dict[str, Tensor]


def run(implementation: str, precision: str, job: Job) -> Ran:
    """Does the job. Raises BackendError or EngineError, with the reason, when `implementation`, one of IMPLEMENTATIONS,
    cannot be had here in this precision."""
    return IMPLEMENTATIONS[implementation](job, precision)


def _kernels(job: Job, precision: str) -> Ran:
    from ..engines.triton.alone import run_kernels

    how, values = run_kernels(job.reference, job.names, precision, job.quantizations.get(precision), job.images)
    return Ran("kernels", how, _by_name(job.names, values))


def _onnx_runtime(job: Job, precision: str) -> Ran:
    from ..engines.onnx.runtime import run_graph

    graph = typed_graph(job.reference, job.names, precision, job.quantizations.get(precision))
    values = run_graph(graph, job.images, job.names)
    return Ran("onnxruntime", "the exported graph, not optimized", _by_name(job.names, values))


def _engine(backend: str, job: Job, precision: str) -> Ran:
    chosen, precision, reason = choose(backend, precision)
    chosen = chosen.for_images(job.images.shape).for_model(job.reference)
    settings = Settings(chosen, precision, chosen.device(), job.quantizations.get(precision))
    images = job.images.to(settings.device)
    values: dict[str, Tensor] = {}
    for names in filter(None, (job.inside, job.results)):  # what is deployed is the engine with the results alone
        values |= _by_name(names, chosen.engine(job.reference, settings, names)(images))
    return Ran(chosen.name, reason, values)


def _by_name(names: Sequence[str], values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in zip(names, values, strict=True)}


IMPLEMENTATIONS: dict[str, Callable[[Job, str], Ran]] = {
    "kernels": _kernels,
    "onnxruntime": _onnx_runtime,
    "engine": partial(_engine, "auto"),
    **{backend: partial(_engine, backend) for backend in BACKENDS if backend != REFERENCE},
}
