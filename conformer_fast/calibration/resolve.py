"""From what the user gave as a quantization to the scales of 8 bits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..inference.detector import parts_of
from ..inference.lower import blank, blank_part
from ..inference.quantization import Quantization
from ..model.detector.reference import Detector
from ..model.precision import FORMATS
from ..model.reference import Conformer
from ..storage.paths import cache_root
from .calibrate import Images, calibrate, in_batches, warn_of
from .calibrate_detector import DetectorImages, calibrate_detector

MEASURED_IMAGES = 8  # of the images given, on which a graph's error is measured


def resolve(
    reference: Conformer, precision: str, quantization: Quantization | Images | None
) -> tuple[Quantization | None, Tensor | None]:
    """How to quantize `reference`, if at all, and the first of the images if images were given.

    quantization: what `calibrate` returned, or the images that it is to measure: batches (B, in_channels, H, W)
                  or a folder's path

    Raises ArgumentError when only one of an 8-bit precision and its quantization is given, or one for another
    precision or of another model's products, and what `calibrate` raises. Warns as `calibrate` does, and of a
    quantization that was made for other weights: those of a later epoch may do with it, so it is not refused.
    """
    given = _given(precision, quantization)
    if given is None:
        return None, None
    if isinstance(given, Quantization):
        heads = not reference.features_only
        blank(reference.config, None, "fp32", heads=heads, norm=heads).check_products(given)
        warn_of(given, reference)
        return given, None
    quantization = given
    batches = in_batches(quantization, reference.config, reference.recipe)
    found = calibrate(reference, batches, precision=precision, cache=cache_root() / "calibration")
    first: list[Tensor] = []
    for images in batches:
        room = MEASURED_IMAGES - sum(map(len, first))
        if not room:
            break
        if len(images) and images.shape[1:] == [*first, images][0].shape[1:]:
            first.append(images[:room].detach().to("cpu", torch.float32))  # where the reference is
    return found, torch.cat(first)


def resolve_detector(
    reference: Detector, precision: str, quantization: Quantization | Images | None
) -> tuple[Quantization | None, Tensor | None]:
    """The same for a detector, whose images have sides of multiples of 32, and the first image. Raises as `resolve`
    does."""
    given = _given(precision, quantization)
    if given is None:
        return None, None
    if isinstance(given, Quantization):
        for name in parts_of(reference):
            blank_part(reference.config, name, "fp32").check_products(given.part(name))
        warn_of(given, reference)
        return given, None
    batches = DetectorImages(cast(Any, given), reference)
    found = calibrate_detector(reference, batches)
    warn_of(found)
    return found, batches.read(0)[:1]


def _given(precision: str, quantization: Quantization | Images | None) -> Quantization | Images | None:
    """Raises ArgumentError when only one of an 8-bit precision and its quantization is given, or one for another
    precision."""
    if precision not in FORMATS:
        if quantization is not None:
            raise ArgumentError(
                f"quantization is for {' and '.join(FORMATS)}; leave it out with precision {precision!r}"
            )
        return None
    if quantization is None:
        raise ArgumentError(f"precision {precision!r} takes its ranges from images: give some hundred as quantization")
    if isinstance(quantization, Quantization) and quantization.precision != precision:
        raise ArgumentError(
            f"the quantization was made for {quantization.precision}, not for {precision!r}; calibrate again"
        )
    return quantization
