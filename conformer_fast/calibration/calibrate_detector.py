"""How a detector's products are best put in 8 bits: `calibrate` for each of its networks, in one pass over images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..datasets.batches import images_in
from ..datasets.dataset import PictureSet, open_files
from ..errors import ArgumentError, ArgumentTypeError, ImageError, several, shown
from ..inference.detector import parts_of, split_regions
from ..inference.lower import lower
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.detector.config import LEVELS, DetectorConfig
from ..model.detector.detect import PYTORCH, detect
from ..model.detector.parts import Proposed
from ..model.detector.reference import Detector, checked_sizes
from ..model.digest import weights_sha256
from ..progress import Bar
from ..version import __version__
from .counts import Counts
from .histograms import Histogram
from .observer import Observer
from .smoothquant import smoothing_factors

FOLDER_LIMIT = 64  # pictures of a folder: each has as many positions as 20 of a classifier's
SMOOTHED_ON = 4  # of them: where smoothing is measured
PRECISION = "int8"

Images = Sequence[Tensor] | PictureSet | str | os.PathLike[str]


def calibrate_detector(detector: Detector, images: Images | DetectorImages, smoothquant: bool = True) -> Quantization:
    """How to quantize `detector`, which is in fp32 on the CPU and is not changed.

    images:      batches (B, 3, H, W), normalized, of sides of multiples of 32; or a set of pictures or a folder's
                 path: 64 of its pictures, fitted as `fit_pictures` does it
    smoothquant: as for `calibrate`

    Raises ArgumentError when there are no images or one of the values is not finite; ImageError for a damaged picture.
    """
    batches = images if isinstance(images, DetectorImages) else DetectorImages(images, detector)
    parts = {name: lower(part) for name, part in parts_of(detector).items()}
    factors = {}
    if smoothquant:
        first = "proposer"
        backbone = parts[first].get_submodule("backbone")
        assert isinstance(backbone, InferenceConformer)
        some = [batches.read(index) for index in range(min(SMOOTHED_ON, len(batches)))]
        found = smoothing_factors(backbone, some, PRECISION)
        factors = {f"{first}.backbone.{name}": values for name, values in found.items()}
        parts[first] = parts[first].smoothed({f"backbone.{name}": values for name, values in found.items()})
    counts, networks = Counts(), _Observed(parts, detector.config)
    with Bar("calibrating", len(batches), "batch") as bar:
        for batch in batches:
            with torch.inference_mode():
                detect(networks, detector.config, batch, checked_sizes(batch, None))
            counts.pictures.add(batch)
            counts.images += len(batch)
            bar.update()
    counts.histograms = networks.histograms
    origin = {
        "conformer_fast": __version__,
        "images": counts.images,
        "pictures": counts.pictures.facts,
        "weights": weights_sha256(detector),
    }
    return Quantization(PRECISION, counts.ranges(PRECISION), factors, origin)


class DetectorImages:
    """The given batches, or the pictures of a set or a folder, which are read when they are asked for."""

    def __init__(self, given: Images, detector: Detector) -> None:
        self._recipe = detector.recipe
        self._given: list[Any]
        if isinstance(given, str | os.PathLike):
            given = open_files([str(path) for path in images_in(given, size=1, limit=FOLDER_LIMIT).paths])
        self._pictures = given.evenly(FOLDER_LIMIT) if isinstance(given, PictureSet) else None
        if self._pictures is not None:
            self._given = list(self._pictures.pictures)
        else:
            if isinstance(given, Tensor) and given.ndim <= 4:
                raise ArgumentTypeError(
                    "images for quantization must be a list of batches, such as images.split(1), got one"
                )
            batches = several("images for quantization", given)
            self._given = [one[0] if isinstance(one, list | tuple) and one else one for one in batches]
        if not self._given:
            raise ArgumentError("calibration got no images; give some that are like those the detector will see")

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, range(len(self)))

    def read(self, index: int) -> Tensor:
        images = self._given[index]
        if self._pictures is not None:
            from ..preprocessing.detection import fit_pictures, upright

            picture = upright(self._pictures.load(index))
            try:
                images, _ = fit_pictures([picture], recipe=self._recipe)
            except ImageError as error:
                raise ImageError(f"{shown(images.name)}: {error}") from error
        checked_sizes(images, None)
        return images.detach().to("cpu", torch.float32)


class _Observed:
    """The networks in fp32, and how often each magnitude occurs in what their products read."""

    operators = PYTORCH

    def __init__(self, parts: dict[str, Any], config: DetectorConfig) -> None:
        self._classes = config.num_classes
        self._observers = {name: Observer(part) for name, part in parts.items()}
        self.histograms: dict[str, Histogram] = {}

    def propose(self, images: Tensor) -> Proposed:
        found = [value.permute(0, 3, 1, 2) for value in self._run("proposer", images)]
        return Proposed(tuple(found[:LEVELS]), tuple(found[LEVELS:]))

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        (found,) = self._run("boxes", features.permute(0, 2, 3, 1).flatten(1)[None, None])
        return split_regions(found[0, 0], self._classes)

    def masks(self, features: Tensor) -> Tensor:
        if not len(features):  # nothing was found in this picture
            side = 2 * features.shape[-1]
            return features.new_empty(0, self._classes, side, side)
        return self._run("masks", features.permute(0, 2, 3, 1))[0]

    def _run(self, part: str, images: Tensor) -> tuple[Tensor, ...]:
        def see(name: str, value: Tensor) -> None:
            self.histograms.setdefault(f"{part}.{name}", Histogram()).add(value)

        return self._observers[part].observe(images, see)
