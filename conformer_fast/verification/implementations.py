"""What computes the inference model: Triton's kernels, ONNX Runtime on the exported graph, and the engines.

Each runs the same job and returns its values by name, so that they can be compared with each other (diff.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engines.base import Settings
from ..engines.registry import RUNNERS, choose, runner
from ..inference.quantization import Quantization
from ..model.reference import Conformer


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
    """A job done: what did it, in one word and in one line, on what device, how many of the kernels' calls PyTorch took
    over, and the values on the CPU, by name."""

    implementation: str
    how: str
    device: str
    by_pytorch: int
    values: dict[str, Tensor]


def run(implementation: str, precision: str, job: Job) -> Ran:
    """Does the job. Raises BackendError or EngineError, with the reason, when `implementation`, one of IMPLEMENTATIONS,
    cannot be had here in this precision."""
    quantization = job.quantizations.get(precision)
    if implementation not in RUNNERS:
        return _engine("auto" if implementation == "engine" else implementation, job, precision, quantization)
    ran = runner(implementation).run(job.reference, job.names, precision, quantization, job.images)
    return Ran(implementation, ran.how, ran.device, ran.by_pytorch, _by_name(job.names, ran.values))


def usual() -> list[str]:
    """The implementations that can run here in reasonable time."""
    return [*(name for name in RUNNERS if not runner(name).slow()), "engine"]


def _engine(backend: str, job: Job, precision: str, quantization: Quantization | None) -> Ran:
    chosen, precision, reason = choose(backend, precision)
    chosen = chosen.for_images(job.images.shape).for_model(job.reference)
    settings = Settings(chosen, precision, chosen.torch_device(), quantization)
    images = job.images.to(settings.device)
    values: dict[str, Tensor] = {}
    for names in filter(None, (job.inside, job.results)):  # what is deployed is the engine with the results alone
        values |= _by_name(names, chosen.engine(job.reference, settings, names)(images))
    return Ran(chosen.name, reason, settings.device, 0, values)


def _by_name(names: Sequence[str], values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in zip(names, values, strict=True)}
