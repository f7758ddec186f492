"""tune(): which tile, or PyTorch, is fastest for each kernel of models on this GPU; kept for later programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..calibration.noise import quantization_of_noise
from ..checkpoints.create import create_model
from ..engines.base import Tuned
from ..engines.registry import TUNED, choose
from ..errors import a_function, several, whole
from ..inference.lower import lower
from ..model.config import VARIANTS
from ..model.precision import around
from ..model.shapes import usual_side


@dataclass(frozen=True)
class Tuning:
    """What `tune` measured on `gpu` in `precision`, and wrote to `file`.

    tuned:   every problem that the kernels were posed, once, in the models' order
    no_room: pairs of a model and a batch that the GPU has no room for
    """

    gpu: str
    precision: str
    file: Path
    tuned: tuple[Tuned, ...]
    no_room: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        changed = sum(tuned.choice != tuned.rule for tuned in self.tuned)
        return (
            f"{self.gpu}, {self.precision}: {len(self.tuned)} problems, {changed} with another choice than the rule's; "
            f"written to {self.file}"
        )


def tune(
    models: Iterable[str] = tuple(VARIANTS),
    batches: Iterable[int] = (1, 8, 32, 128),
    *,
    size: int | None = None,
    precision: str = "auto",
    each: Callable[[Tuned], object] = lambda tuned: None,
) -> Tuning:
    """Measures the kernels of models of random weights, whose speed is that of trained ones. It takes minutes.

    models:    names of variants
    batches:   numbers of images run together; each is rounded up as compiled models round it
    size:      side of the images in pixels; default: what the model is trained on, 224 for the published ones
    precision: of the backend "triton"; "auto" is the fastest of 16 and 32 bits. In "int8" and "fp8" all products are
               tuned that `calibrate` puts in 8 bits.
    each:      is given each result as soon as it is known

    The table of this GPU is written after each model and batch, so little is lost if this is interrupted.

    Raises BackendError where the kernels or the precision cannot be had, ArgumentError for an unknown name, OSError
    when the table cannot be written.
    """
    models = several("models", models)
    a_function("each", each)
    batches = [whole("batches", batch) for batch in several("batches", batches)]
    choice = choose(TUNED, precision)
    tuner = choice.backend.tuner(choice.backend.torch_device())
    rounded = sorted({tuner.rounded(batch) for batch in batches})
    found: dict[str, Tuned] = {}
    no_room = []
    for name in models:
        reference = create_model(name)
        side = usual_side(reference.config) if size is None else whole("size", size)
        quantization = quantization_of_noise(reference, choice.precision, side)
        network = lower(reference, None, around(choice.precision), quantization)
        for batch, new in tuner.tune(network, rounded, side, skip=found):
            if new is None:
                no_room.append((name, batch))
                continue
            found |= new
            for tuned in new.values():
                each(tuned)
    return Tuning(tuner.gpu, choice.precision, tuner.file, tuple(found.values()), tuple(no_room))
