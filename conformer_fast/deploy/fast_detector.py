"""FastDetector: a compiled detector, and all that can be done with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engines.base import Settings
from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..model.detector.class_names import detector_labels, warn_of_assumptions
from ..model.detector.config import DetectorConfig
from ..model.detector.detect import Detections, ImageSize, Networks, detect
from ..model.detector.reference import Detector, checked_sizes
from ..model.forked import before_computing
from ..model.recipe import Recipe

if TYPE_CHECKING:
    from .detect import Damaged, DetectedPicture


class FastDetector:
    """What `compile` returns for a detector. It is called as the Detector it was made from: images (B, 3, H, W) on the
    CPU, normalized, and the sizes of the pictures in them -> a list of B Detections.

    `networks` are its engines, `settings` and `reason` tell how it runs, `config` what it is, `recipe` what it was
    trained for, `labels` the classes' names, `reference` the detector that defines what is correct, in fp32 on the CPU.
    """

    def __init__(self, networks: Networks, settings: Settings, reason: str, reference: Detector) -> None:
        self.networks = networks
        self.settings, self.reason, self.reference = settings, reason, reference

    @property
    def config(self) -> DetectorConfig:
        return self.reference.config

    @property
    def recipe(self) -> Recipe:
        return self.reference.recipe

    @property
    def labels(self) -> tuple[str, ...]:
        return detector_labels(self.recipe, self.config)

    def __call__(self, images: Tensor, sizes: Sequence[ImageSize] | None = None) -> list[Detections]:
        """sizes: default: each image is a picture of its own size.

        Raises ArgumentError for images that are not (B, 3, H, W) of multiples of 32, hold NaN or are on a GPU, and for
        sizes that do not fit them.
        """
        before_computing()
        found = checked_sizes(images, sizes)
        if images.device.type != "cpu":
            raise ArgumentError(f"this detector is compiled for the CPU, the images are on {images.device}")
        if images.layout != torch.strided or images.is_nested:
            raise ArgumentTypeError(f"images must be one dense tensor, got a {images.layout} one")
        if not images.is_floating_point():
            raise ArgumentError(f"images must be floating point and normalized, got {images.dtype}; see fit_pictures")
        images = images.detach().float()
        if not images.isfinite().all():
            raise ArgumentError(
                f"{int((~images.isfinite()).sum())} of the images' {images.numel()} values are not finite"
            )
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return detect(self.networks, self.config, images, found)

    def predict(self, paths: Sequence[str | os.PathLike[str]]) -> Iterator[DetectedPicture | Damaged]:
        """What is in picture files, one after another; of one that cannot be used, what is wrong with it.

        Warns, in one line, of what the weights do not say and is assumed.
        """
        from .detect import detect_files

        warn_of_assumptions(self.recipe, self.config)
        return detect_files(self, paths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the reference, and make the engines again."""
        return compiled_detector, (self.reference, self.settings, self.reason)

    def __repr__(self) -> str:
        return f"FastDetector({self.reason})"


def compiled_detector(reference: Detector, settings: Settings, reason: str) -> FastDetector:
    """The detector of these settings. It is the reference's own copy that it keeps."""
    return FastDetector(settings.backend.networks(reference, settings), settings, reason, reference)


def own_copy(detector: Detector) -> Detector:
    """In fp32 on the CPU, so that what becomes of `detector` changes nothing. Raises ArgumentError in training mode."""
    if any(part.training for part in detector.modules()):
        raise ArgumentError("the detector, or a part of it, is in training mode; call detector.eval() first")
    if any(tensor.is_meta for tensor in detector.state_dict().values()):
        raise CheckpointError("the detector is on the meta device, without values; load its weights first")
    state: dict[str, Any] = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        copy = Detector(detector.config).eval().requires_grad_(False)
    copy.load_state_dict(state)
    copy.recipe = detector.recipe
    return copy
