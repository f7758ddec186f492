"""What timings of several rounds say: where their median lies, and whether the machine's speed drifted meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

CONFIDENCE = 0.95
ENOUGH = 6  # rounds: of fewer, not even the least and the greatest are that sure to have the median between them


class Spread(NamedTuple):
    """The median of what was measured, and between which two values the true one lies with CONFIDENCE: that of endless
    rounds. Of fewer than ENOUGH rounds they are the least and the greatest, and it lies between them less surely."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """By the sign test: each round is above the true median as likely as below it, whatever else is known of it. No
    distribution is assumed, so a few rounds that something else disturbed move it little."""
    ordered = sorted(values)
    left_out = 0  # at each end
    while 2 * _at_most(left_out, len(ordered)) <= 1 - CONFIDENCE:
        left_out += 1
    left_out = max(0, left_out - 1)
    return Spread(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out])


def drift(seconds: Sequence[float]) -> float | None:
    """How much longer calls of the same took in the last third of the rounds than in the first, by the medians of both,
    as a share: 0.1 is a machine that became a tenth slower. None of fewer than ENOUGH rounds."""
    third = len(seconds) // 3
    if len(seconds) < ENOUGH:
        return None
    return statistics.median(seconds[-third:]) / statistics.median(seconds[:third]) - 1


def _at_most(above: int, rounds: int) -> float:
    """How likely so few rounds, or fewer, are above the true median."""
    return sum(comb(rounds, count) for count in range(above + 1)) / 2**rounds
