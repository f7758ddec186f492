"""What a model's results must reach in any case, however much PyTorch errs in the same precision.

The floor of 8 bits parts ranges of pictures like the model's, even of a single one, from those of gray pictures or of
pixels that are not normalized, as measured on the two trained models: benchmarks/verdicts.py, docs/accuracy.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Floor(NamedTuple):
    """sqnr_db: of each result. agreement: share of all images, of which those at hand are a sample, that get the
    reference's class."""

    sqnr_db: float
    agreement: float

    @property
    def error(self) -> float:
        """The largest relative error, the same as `sqnr_db`."""
        return 10 ** (-self.sqnr_db / 20)

    def agrees(self, share: float, images: int) -> bool:
        """Whether `share` of so many images may be a sample of enough agreement.

        It may have one image and three standard deviations more of the others than it should, so that few images fail
        only if hardly one agrees, and of one image nothing follows.
        """
        others = images * (1 - self.agreement)
        return images * (1 - share) <= others + 3 * math.sqrt(others * self.agreement) + 1


FLOORS = {
    "fp32": Floor(40, 0.99),  # with TF32 too, if PyTorch's settings allow it
    "fp16": Floor(34, 0.95),
    "bf16": Floor(26, 0.95),
    "int8": Floor(14, 0.8),
    "fp8": Floor(14, 0.8),
}
