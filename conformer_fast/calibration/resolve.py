"""From what the user gave as a calibration to the scales of 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.precision import FORMATS
from ..storage.paths import cache_root
from .calibrate import calibrate

MEASURED_IMAGES = 8  # of the calibration's, on which the graph's error is measured


def quantization_of(
    model: InferenceConformer, precision: str, calibration: Quantization | Iterable[Tensor] | None
) -> tuple[Quantization | None, Tensor | None]:
    """How to quantize `model`, in fp32, if at all, and the first of the calibration's images if it is images.

    Raises ValueError when only one of an 8-bit precision and its calibration is given, or a calibration for another
    precision, and what `calibrate` raises.
    """
    if precision not in FORMATS:
        if calibration is not None:
            raise ValueError(f"calibration is for {' and '.join(FORMATS)}; leave it out with precision {precision!r}")
        return None, None
    if calibration is None:
        raise ValueError(f"precision {precision!r} takes its ranges from images: give some hundred as calibration")
    if isinstance(calibration, Quantization):
        if calibration.precision != precision:
            raise ValueError(
                f"the calibration was made for {calibration.precision}, not for {precision!r}; calibrate again"
            )
        return calibration, None
    batches = calibration if isinstance(calibration, Sequence) else list(calibration)
    quantization = calibrate(model, batches, precision=precision, cache=cache_root() / "calibration")
    first: list[Tensor] = []
    for images in batches:
        room = MEASURED_IMAGES - sum(map(len, first))
        if not room:
            break
        if len(images) and images.shape[1:] == [*first, images][0].shape[1:]:
            first.append(images[:room].detach().to("cpu", torch.float32))  # where the reference is
    return quantization, torch.cat(first)
