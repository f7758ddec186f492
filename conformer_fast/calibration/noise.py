"""The usual quantization of a model of which only the speed counts."""

from __future__ import annotations

import torch

from ..inference.lower import lower
from ..inference.quantization import Quantization
from ..model.names import IN_8_BITS
from ..model.reference import Conformer
from .counts import counted


def quantization_of_noise(reference: Conformer, precision: str, side: int) -> Quantization | None:
    """Of all products that `calibrate` puts in 8 bits, with ranges of an image of noise, side x side; None for a
    precision that is not of 8 bits."""
    if precision not in IN_8_BITS:
        return None
    noise = torch.randn(1, reference.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    return Quantization(precision, counted(lower(reference), [noise]).ranges(precision))
