"""One pass over images: how often each magnitude occurs in what each product reads, kept in a file while it goes on."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from ..errors import ArgumentError, whole
from ..inference.network import InferenceConformer
from ..inference.quantization import addend_of, result_of, usually_stored
from ..progress import Bar
from ..storage.hashed import HashedFile
from .histograms import BINS, Histogram
from .image_facts import ImageFacts
from .observer import Observer

FP32 = float(np.finfo(np.float32).max)  # no magnitude is larger
SAVED_EVERY = 4  # batches: what an interruption may cost


@dataclass
class Counts:
    """What a pass has found so far. batches, images: how many it has seen."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    batches: int = 0
    images: int = 0
    pictures: ImageFacts = field(default_factory=ImageFacts)

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
        return save(
            {
                "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
                "largest": np.array([histogram.largest for histogram in self.histograms.values()]),
                "weights": np.array([histogram.weights for histogram in self.histograms.values()]),
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes, points: Iterable[str], batches: float) -> Counts:
        """What `to_bytes` gave, of a pass over so many batches that sees these names.

        Raises ArgumentError when it is anything else.
        """
        try:
            kept = load(content)
            facts, largest, weights = json.loads(kept["facts"].tobytes()), kept["largest"], kept["weights"]
            names, seen, images = (
                facts["points"],
                whole("batches", facts["batches"]),
                whole("images", facts["images"], 0),
            )
            pictures = ImageFacts.from_facts(facts["pictures"])
            sound = (
                seen <= batches
                and len(set(names)) == len(names)
                and set(names) <= set(points)
                and (largest.shape, weights.shape) == ((len(names),), (len(names), BINS))
                and all(((values >= 0) & (values <= FP32)).all() for values in (largest, weights))
            )
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ArgumentError(f"no counts ({error!r:.100})") from error
        if not sound or {largest.dtype, weights.dtype} != {np.dtype(np.float64)}:
            raise ArgumentError("no counts of this model and these images")
        pairs = zip(largest.tolist(), weights.copy(), strict=True)
        histograms = {name: Histogram(*pair) for name, pair in zip(names, pairs, strict=True)}
        return cls(histograms, seen, images, pictures)


def counted(model: InferenceConformer, batches: Iterable[Tensor], file: HashedFile | None = None) -> Counts:
    """One pass over the images, or what is left of it where `file` has its beginning.

    Raises ArgumentError when there are no images, and what `Observer.observe` raises.
    """
    total = len(batches) if isinstance(batches, Sequence) else None
    counts = (file and _kept(model, total or math.inf, file)) or Counts()
    started = counts.batches
    observer = Observer(model)

    def see(name: str, value: Tensor) -> None:
        counts.histograms.setdefault(name, Histogram()).add(value)

    rest = batches
    if isinstance(batches, Sequence):
        rest = (batches[index] for index in range(started, len(batches)))
    with Bar("calibrating", total, "batch", done=started) as bar:
        for images in rest:
            observer.observe(images, see)
            counts.pictures.add(images)
            counts.batches += 1
            counts.images += len(images)
            bar.update()
            if file and counts.histograms and (counts.batches % SAVED_EVERY == 0 or counts.batches == total):
                file.write_or_warn("counts", counts.to_bytes())
    if not counts.histograms:
        raise ArgumentError("calibration got no images; give some that are like those the model will see")
    return counts


def _kept(model: InferenceConformer, batches: float, file: HashedFile) -> Counts | None:
    """What `file` has of the pass, if it can be used."""
    again = "its images are counted again"
    content = file.read_or_warn(again)
    products = model.quantizable
    points = {*products, *map(addend_of, products), *map(result_of, products)}
    try:
        return None if content is None else Counts.from_bytes(content, points, batches)
    except ArgumentError as error:
        warnings.warn(f"{file.path} holds {error}; {again}", stacklevel=2)
        return None
