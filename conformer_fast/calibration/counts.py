"""One pass over images: how often each magnitude occurs in what each product reads, kept in a file while it goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import Tensor

from ..errors import ArgumentError
from ..inference.network import InferenceConformer
from ..inference.quantization import usually_stored
from ..storage.hashed import HashedFile
from .histograms import Histogram
from .observer import Observer, progress
from .pictures import Pictures

SAVED_EVERY = 4  # batches: what an interruption may cost


@dataclass
class Counts:
    """What a pass has found so far. batches, images: how many it has seen."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    batches: int = 0
    images: int = 0
    pictures: Pictures = field(default_factory=Pictures)

    def ranges(self, precision: str) -> dict[str, float]:
        """Of all that 8 bits of this precision usually hold, by name."""
        return {
            name: histogram.range(precision)
            for name, histogram in self.histograms.items()
            if usually_stored(name, precision)
        }

    def to_bytes(self) -> bytes:
        facts = {
            "batches": self.batches,
            "images": self.images,
            "pictures": asdict(self.pictures),
            "points": list(self.histograms),
        }
        file = io.BytesIO()
        np.savez_compressed(
            file,
            facts=np.array(json.dumps(facts)),
            largest=np.array([histogram.largest for histogram in self.histograms.values()]),
            weights=np.array([histogram.weights for histogram in self.histograms.values()]),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Counts:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            facts = json.loads(kept["facts"].item())
            histograms = {
                name: Histogram(float(largest), weights)
                for name, largest, weights in zip(facts["points"], kept["largest"], kept["weights"], strict=True)
            }
            return cls(histograms, facts["batches"], facts["images"], Pictures(**facts["pictures"]))


def counted(model: InferenceConformer, batches: Iterable[Tensor], file: HashedFile | None = None) -> Counts:
    """One pass over the images, or what is left of it where `file` has its beginning.

    Raises ArgumentError when there are no images, and what `Observer.observe` raises.
    """
    content = None if file is None else file.read_or_warn("its images are counted again")
    counts = Counts() if content is None else Counts.from_bytes(content)
    started = counts.batches
    observer = Observer(model)

    def see(name: str, value: Tensor) -> None:
        counts.histograms.setdefault(name, Histogram()).add(value)

    total, rest = None, batches
    if isinstance(batches, Sequence):
        total, rest = len(batches), (batches[index] for index in range(started, len(batches)))
    with progress("calibrating", total, started) as bar:
        for images in rest:
            observer.observe(images, see)
            counts.pictures.add(images)
            counts.batches += 1
            counts.images += len(images)
            bar.update()
            if file and (counts.batches % SAVED_EVERY == 0 or counts.batches == total):
                file.write_or_warn("counts", counts.to_bytes())
    if not counts.histograms:
        raise ArgumentError("calibration got no images; give some that are like those the model will see")
    return counts
