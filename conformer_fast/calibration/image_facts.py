"""What images show of themselves that speaks against ranges measured on them: flat, few, or not normalized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FEW = 16  # of fewer the ranges cost some dB of SQNR: docs/accuracy.md
USUAL = 10.0  # magnitudes of normalized pictures end at 2.7, of random normal values at 6


@dataclass
class ImageFacts:
    """flat: how many images have one value in each channel. distinct: what tells apart up to FEW of them. extent: the
    smallest and the largest value; None unless they have the three channels of pictures."""

    flat: int = 0
    distinct: list[list[float]] = field(default_factory=list)
    extent: list[float] | None = None

    @classmethod
    def from_facts(cls, values: dict[str, Any]) -> ImageFacts:
        """Of its fields as JSON values. Raises ValueError, TypeError or KeyError for anything else."""
        extent = values["extent"]
        distinct = [[float(total), float(squares)] for total, squares in values["distinct"][:FEW]]
        return cls(int(values["flat"]), distinct, None if extent is None else [float(extent[0]), float(extent[1])])

    def add(self, images: Tensor) -> None:
        """Looks at images (B, in_channels, H, W)."""
        if not len(images):
            return
        values = images.flatten(2)
        smallest, largest = values.amin(2), values.amax(2)
        self.flat += int((smallest == largest).all(1).sum())
        if images.shape[1] == 3:
            found = [smallest.min().item(), largest.max().item(), *(self.extent or ())]
            self.extent = [min(found), max(found)]
        if len(self.distinct) < FEW:
            sums = torch.stack([values.double().sum((1, 2)), values.double().square().sum((1, 2))], 1)
            self.distinct += [mark for mark in sums.unique(dim=0).tolist() if mark not in self.distinct]
            del self.distinct[FEW:]

    @property
    def facts(self) -> dict[str, Any]:
        """For `Quantization.origin`, where `doubts` reads them."""
        return {"flat": self.flat, "distinct": len(self.distinct), "extent": self.extent}


def doubts(origin: Mapping[str, Any]) -> Iterator[str]:
    """Each reason to doubt a quantization, from its `origin`, in words; none of what was made in another way."""
    try:
        images, facts = int(origin["images"]), origin["pictures"]
        flat, distinct = int(facts["flat"]), int(facts["distinct"])
        smallest, largest = map(float, facts["extent"] or (-1, 1))
    except (KeyError, TypeError, ValueError, OverflowError):
        return
    if 2 * flat >= images:
        yield f"{flat} of its {images} images are of one color each"
    if distinct < FEW:
        yield f"it is of {distinct} different {'image' if distinct == 1 else 'images'}, and some hundred are usual"
    if max(-smallest, largest) > USUAL:
        yield f"its images have values from {smallest:.3g} to {largest:.3g}, and normalized pictures -2.2 to 2.7"
    elif smallest >= 0:
        yield f"none of its images has a value below 0 ({smallest:.3g} to {largest:.3g}), so they are not normalized"
