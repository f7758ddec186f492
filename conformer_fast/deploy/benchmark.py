"""benchmark(): how much faster compiled models are than eager PyTorch, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..calibration.noise import quantization_of_noise
from ..checkpoints.create import create_model
from ..engines.base import Backend
from ..engines.registry import choose
from ..engines.timing import time_in_turn
from ..errors import ArgumentError, a_function, several, whole
from ..inference.quantization import Quantization
from ..model.config import VARIANTS
from ..model.shapes import usual_side
from ..tables import Column, Table
from .compile import compile


@dataclass(frozen=True)
class Benchmark:
    """What one model takes for one batch. backend, precision, device: how it was compiled; size: side of the images.

    reference_ms: median milliseconds of the reference in eager fp32, on the same device; compiled_ms: of the compiled
    model; speedup: the median over the rounds of how many times faster that was
    """

    TABLE: ClassVar[Table] = Table(
        Column("model", width=9),
        Column("batch", "d"),
        Column("eager fp32 ms", ".1f"),
        Column("compiled ms", ".1f"),
        Column("images/s", ".1f"),
        Column("speed-up", ">"),
        Column("compiled for"),
    )

    model: str
    batch: int
    size: int
    backend: str
    precision: str
    device: str
    threads: int
    reference_ms: float
    compiled_ms: float
    speedup: float

    @property
    def images_per_second(self) -> float:
        """Of the compiled model."""
        return self.batch / self.compiled_ms * 1e3

    def __str__(self) -> str:
        """One line below TABLE.head."""
        figures = self.reference_ms, self.compiled_ms, self.images_per_second, f"{self.speedup:.2f}x"
        return self.TABLE.line(self.model, self.batch, *figures, f"{self.backend} {self.precision}")


def benchmark(
    models: Iterable[str] = tuple(VARIANTS),
    batches: Iterable[int] = (1, 8),
    *,
    size: int | None = None,
    backend: str | Backend = "auto",
    precision: str = "auto",
    quantization: Quantization | None = None,
    rounds: int = 5,
    each: Callable[[Benchmark], object] = lambda row: None,
) -> list[Benchmark]:
    """Times models of random weights, which take as long as trained ones, against their references, in turn.

    models:       names of variants
    batches:      numbers of images run together
    size:         side of the images in pixels; default: what the model is trained on, 224 for the published ones
    backend, precision: as for `compile`
    quantization: for "int8" and "fp8"; default: all products that `calibrate` puts in 8 bits
    rounds:       each model is called so often
    each:         is given each result as soon as it is known

    Raises what `compile` raises; ArgumentError for an unknown model, and for numbers below 1.
    """
    models, rounds = several("models", models), whole("rounds", rounds)
    a_function("each", each)
    batches = [whole("batches", batch) for batch in several("batches", batches)]
    if not batches or not models:
        raise ArgumentError(f"give at least one model and one batch, got {models} and {batches}")
    rows = []
    for name in models:
        reference = create_model(name)
        side = usual_side(reference.config) if size is None else whole("size", size)
        shape = reference.config.in_channels, side, side
        here = choose(backend, precision).backend.for_images((max(batches), *shape))
        chosen = quantization or quantization_of_noise(reference, precision, side)
        fast = compile(reference, backend=here, precision=precision, quantization=chosen)
        reference.to(fast.device)
        for batch in batches:
            images = torch.randn(batch, *shape, device=fast.device)
            with torch.inference_mode():
                timings = time_in_turn({"reference": reference, "compiled": fast}, images, rounds)
            row = Benchmark(
                name,
                batch,
                side,
                fast.settings.backend.name,
                fast.settings.precision,
                str(fast.device),
                getattr(fast.settings.backend, "threads", None) or torch.get_num_threads(),
                timings["reference"].median * 1e3,
                timings["compiled"].median * 1e3,
                timings["compiled"].speedup,
            )
            rows.append(row)
            each(row)
    return rows
