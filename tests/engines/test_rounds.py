"""What rounds of timings say, on made-up ones: still, noisy, drifting and of two speeds."""

from __future__ import annotations

import random

import pytest

from conformer_fast.engines.rounds import ENOUGH, drift, spread


def test_the_median_lies_between_values_that_the_number_of_rounds_says():
    """By tables of the sign test: of 10 rounds the second and the ninth, of 20 the sixth and the fifteenth."""
    assert spread([3, 1, 2, 5, 4, 6, 10, 9, 8, 7]) == (5.5, 2, 9)
    assert spread(range(1, 21)) == (10.5, 6, 15)
    assert spread(range(1, 7)) == (3.5, 1, 6)
    assert spread([2, 1]) == (1.5, 1, 2)
    assert spread([4]) == (4, 4, 4)


def test_the_spread_has_the_true_median_as_often_as_it_says():
    """Of skewed noise, as timings have it, whose median is 1."""
    generator = random.Random(0)
    rounds = [spread([generator.lognormvariate(0, 0.3) for _ in range(12)]) for _ in range(4000)]
    within = sum(found.low <= 1 <= found.high for found in rounds) / len(rounds)
    assert 0.95 <= within < 0.97


def test_a_disturbed_round_moves_it_little():
    still = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0]
    _, low, high = spread([*still[:-1], 50.0])
    assert 0.97 < low <= high < 1.03


def test_two_speeds_are_a_wide_spread():
    """As of a machine that changes its clock: no median of a few rounds is worth much."""
    assert spread([1.0, 2.0] * 5) == (1.5, 1, 2)


def test_drift_is_of_thirds():
    assert drift([5.0, 1.0, 1.0] + [1.4] * 4 + [1.2] * 3) == pytest.approx(0.2)
    assert drift([2.0, 2.0, 9.0, 9.0, 1.0, 1.0]) == pytest.approx(-0.5)
    assert drift([1.0, 1.0, 30.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == 0  # a round is no drift
    assert drift([1.0] * (ENOUGH - 1)) is None
