"""How often magnitudes occur, and the range that 8 bits should cover: what lies beyond it is clipped to it.

A wide range clips nothing and leaves coarse steps; a narrow one clips what is rare for the sake of what is common. The
range is that of RANGES with the least mean squared error of values stored and read back, with the format's own
rounding, in shares of each image's mean square: an image that excites a product ten times as much as others counts as
they do, not a hundred times. Zeros are left out: every range stores them exactly.

PyTorch's HistogramObserver does not serve: it refuses FP8, weighs all values alike, and spreads its counts anew when a
larger value comes, so that they depend on the images' order.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from ..inference.quantization import LARGEST
from ..model.functional import stored
from ..model.precision import FORMATS

BINS = 4096
SMALLEST = -100  # of the exponents of `bound`: what is below that is as good as zero
RANGES = 2.0 ** (-np.arange(65) / 16)  # tried, as shares of the largest magnitude: 1 down to 1 / 16, a bin for a step


class Histogram:
    """Weights of magnitudes in BINS equal bins from 0 to `bound`, a power of two above the largest.

    When a larger value comes, bins join in pairs until it has room. Widths are powers of two, so this loses nothing:
    the weights are those of all values counted at once, in whatever order and parts they came.

    largest: magnitude so far
    weights: float64 (BINS,), how many values are in each bin, those of each image divided by the sum of its squares
    """

    def __init__(self, largest: float = 0.0, weights: np.ndarray | None = None) -> None:
        self.largest = largest
        self.weights = np.zeros(BINS) if weights is None else weights

    @property
    def bound(self) -> float:
        """The end of the last bin; 0 while there were only zeros."""
        return math.ldexp(1.0, max(math.frexp(self.largest)[1], SMALLEST)) if self.largest else 0.0

    @property
    def magnitudes(self) -> np.ndarray:
        """The middle of each bin, float64 (BINS,)."""
        return (np.arange(BINS) + 0.5) * (self.bound / BINS)

    def add(self, values: Tensor) -> None:
        """Counts values (B, ...) of B images, on any device. Raises ArgumentError when one is NaN or infinite."""
        if not values.numel():
            return
        magnitudes = values.detach().float().abs().flatten(1)  # (B, values)
        largest = magnitudes.amax().item()
        if not math.isfinite(largest):
            raise ArgumentError("a value is NaN or infinite")
        self._make_room(largest)
        if not self.bound:
            return
        B = len(magnitudes)
        bins = (magnitudes * (BINS / self.bound)).int()
        bins += BINS * torch.arange(B, dtype=torch.int32, device=values.device)[:, None]
        found = torch.bincount(bins.flatten(), minlength=B * BINS).view(B, BINS)
        found[:, 0] -= (magnitudes == 0).sum(1)  # counted and taken back: faster than to leave them out
        squares = magnitudes.double().square_().sum(1, keepdim=True)
        self.weights += (found / squares.where(squares > 0, math.inf)).sum(0).cpu().numpy()

    def range(self, precision: str) -> float:
        """The range for "int8" or "fp8": of the least squared error when the values are stored; 0 if all were zeros."""
        if not self.largest:
            return 0.0
        dtype, occupied = FORMATS[precision], np.flatnonzero(self.weights)
        magnitudes, limits = self.magnitudes[occupied], self.largest * RANGES
        scales = (limits / LARGEST[dtype])[:, None]
        found = stored(torch.from_numpy(magnitudes / scales).float(), dtype).double().numpy() * scales
        errors = (found - magnitudes) ** 2 @ self.weights[occupied]
        return float(limits[np.argmin(errors)])

    def _make_room(self, largest: float) -> None:
        before = self.bound
        self.largest = max(self.largest, largest)
        if not before:
            return
        for _ in range(round(math.log2(self.bound / before))):
            self.weights = np.concatenate([self.weights.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
