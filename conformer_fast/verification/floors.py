"""What a model's results must reach in any case, however much PyTorch errs in the same precision.

Measured on the two trained models, digits and digit-pairs: PyTorch's own heads have 120 dB in fp32, 68 in fp16, 50 in
bf16; in 8 bits 22 to 40 dB with ranges of pictures like theirs, even of a single one. With ranges of gray pictures or
pixels of 0 ... 255 int8 falls to 3 dB and less, and 16 % of the classes or fewer; with pixels of 0 ... 1 to 10 dB and
90 %. Of all that were tried, each with 14 dB in both heads kept 95 % of the classes. In 16 bits and more the floor is
24 dB and more below what is usual: no sound model is near it.
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
    "fp32": Floor(40, 0.99),  # TF32, if PyTorch's settings allow it, is 60 dB
    "fp16": Floor(34, 0.95),
    "bf16": Floor(26, 0.95),
    "int8": Floor(14, 0.8),
    "fp8": Floor(14, 0.8),
}
