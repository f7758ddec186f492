"""How often magnitudes occur, and the range that 8 bits should cover: what lies beyond it is clipped to it.

A wide range clips nothing and leaves coarse steps; a narrow one clips what is rare for the sake of what is common.
Four ways to choose, of which "mse" and "entropy" try RANGES on the histogram with the format's own rounding:

max         the largest magnitude
percentile  PERCENTILE % of the values are within it
mse         the least mean squared error of values stored and read back, in shares of each image's mean square: an image
            that excites a product ten times as much as others counts as they do, not a hundred times
entropy     the least Kullback-Leibler divergence of the stored values' distribution from the true one, as Szymon
            Migacz describes for TensorRT ("8-bit Inference with TensorRT", GTC 2017)

Zeros are left out: every range stores them exactly, and after a ReLU they would hide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..inference.quantization import LARGEST
from ..model.functional import stored
from ..model.precision import FORMATS

BINS = 4096
SMALLEST = -100  # of the exponents of `bound`: what is below that is as good as zero
PERCENTILE = 99.99
RANGES = 2.0 ** (-np.arange(65) / 16)  # tried, as shares of the largest magnitude: 1 down to 1 / 16, a bin for a step


class Histogram:
    """Counts of magnitudes in BINS equal bins from 0 to `bound`, a power of two above the largest.

    When a larger value comes, bins join in pairs until it has room. Widths are powers of two, so this loses nothing:
    the counts are those of all values counted at once, in whatever order and parts they came.

    counts:  int64 (BINS,)
    weights: float64 (BINS,), the same counts with each image's divided by the sum of its squares
    """

    def __init__(
        self, largest: float = 0.0, counts: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> None:
        self.largest = largest
        self.counts = np.zeros(BINS, dtype=np.int64) if counts is None else counts
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
        """Counts values (B, ...) of B images, on any device. Raises ValueError when one is NaN or infinite."""
        if not values.numel():
            return
        magnitudes = values.detach().float().abs().flatten(1)  # (B, values)
        largest = magnitudes.amax().item()
        if not math.isfinite(largest):
            raise ValueError("a value is NaN or infinite")
        self._make_room(largest)
        if not self.bound:
            return
        B = len(magnitudes)
        bins = (magnitudes * (BINS / self.bound)).int() + BINS * torch.arange(B, device=values.device)[:, None]
        found = torch.bincount(bins[magnitudes > 0], minlength=B * BINS).view(B, BINS)
        self.counts += found.sum(0).cpu().numpy()
        squares = magnitudes.double().square().sum(1, keepdim=True)
        self.weights += torch.where(squares > 0, found / squares, 0.0).sum(0).cpu().numpy()

    def range(self, precision: str, method: str) -> float:
        """The range for "int8" or "fp8" by one of METHODS; 0 if there were only zeros."""
        return METHODS[method](self, FORMATS[precision]) if self.largest else 0.0

    def _make_room(self, largest: float) -> None:
        before = self.bound
        self.largest = max(self.largest, largest)
        if not before:
            return
        for _ in range(round(math.log2(self.bound / before))):
            self.counts, self.weights = _joined(self.counts), _joined(self.weights)


def _joined(bins: np.ndarray) -> np.ndarray:
    """Pairs of bins in one each, and as many empty ones."""
    return np.concatenate([bins.reshape(-1, 2).sum(1), np.zeros(BINS // 2, bins.dtype)])


def _max(histogram: Histogram, dtype: torch.dtype) -> float:
    return histogram.largest


def _percentile(histogram: Histogram, dtype: torch.dtype) -> float:
    within = np.cumsum(histogram.counts)
    last = int(np.searchsorted(within, within[-1] * (PERCENTILE / 100)))
    return min((last + 1) * histogram.bound / BINS, histogram.largest)


def _mse(histogram: Histogram, dtype: torch.dtype) -> float:
    def error(limit: float) -> float:
        found = _stored_at(histogram.magnitudes, limit, dtype) * (limit / LARGEST[dtype])
        return float(histogram.weights @ (found - histogram.magnitudes) ** 2)

    return _least(histogram, error)


def _entropy(histogram: Histogram, dtype: torch.dtype) -> float:
    def divergence(limit: float) -> float:
        within = max(1, math.ceil(limit * BINS / histogram.bound))
        counts = histogram.counts[:within]
        true = counts.astype(np.float64)
        true[-1] += histogram.counts[within:].sum()  # what is clipped is stored as the last value
        # As stored, values of one step cannot be told apart: each occupied bin has the mean of its step.
        _, step = np.unique(_stored_at(histogram.magnitudes[:within], limit, dtype), return_inverse=True)
        occupied = true > 0
        total = np.bincount(step, weights=counts)
        shared = np.bincount(step, weights=occupied)
        found = (total / np.maximum(shared, 1))[step]
        if np.any(occupied & (found == 0)):
            return math.inf  # only clipped values are here, which no step of the unclipped stands for
        true, found = true[occupied] / true.sum(), found[occupied] / found[occupied].sum()
        return float(true @ np.log(true / found))

    return _least(histogram, divergence)


def _least(histogram: Histogram, cost: Callable[[float], float]) -> float:
    limits = histogram.largest * RANGES
    return float(limits[int(np.argmin([cost(limit) for limit in limits]))])


def _stored_at(magnitudes: np.ndarray, limit: float, dtype: torch.dtype) -> np.ndarray:
    """The number that stands for each magnitude when the format covers `limit`."""
    scaled = torch.from_numpy(magnitudes * (LARGEST[dtype] / limit)).float()
    return stored(scaled, dtype).double().numpy()


METHODS: dict[str, Callable[[Histogram, torch.dtype], float]] = {
    "max": _max,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
