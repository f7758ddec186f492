"""Weights that do not depend on how values came, and ranges for values whose best range is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conformer_fast.calibration.histograms import BINS, Histogram
from conformer_fast.inference.quantization import LARGEST
from conformer_fast.model.functional import stored
from conformer_fast.model.precision import FORMATS


def histogram_of(*parts: torch.Tensor) -> Histogram:
    """Of one image a part."""
    histogram = Histogram()
    for part in parts:
        histogram.add(part[None])
    return histogram


def rounding_error(values: torch.Tensor, limit: float, precision: str) -> float:
    """The mean squared error of the values themselves, stored in 8 bits and read back."""
    dtype = FORMATS[precision]
    scale = limit / LARGEST[dtype]
    return (stored(values / scale, dtype).double() * scale - values).square().mean().item()


def test_magnitudes_are_counted_in_equal_bins():
    values = torch.tensor([0.0, -0.5, 0.5, 3.0, -3.999, 0.0])
    histogram = histogram_of(values)
    assert (histogram.largest, histogram.bound) == (pytest.approx(3.999), 4.0)
    width = 4 / BINS
    expected = np.zeros(BINS)
    for value in (0.5, 0.5, 3.0, 3.999):  # zeros are left out
        expected[int(value / width)] += 1
    np.testing.assert_allclose(histogram.weights * values.double().square().sum().item(), expected, rtol=1e-12)
    assert histogram.magnitudes[0] == width / 2


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
def test_order_and_parts_do_not_matter(order):
    """Of magnitudes from 1e-3 to 1e3, which come small first, large first and mixed."""
    parts = torch.stack([torch.randn(1000) * 10.0**power for power in (-3, 0, 1, 3)])
    together, apart = Histogram(), histogram_of(*parts[order])
    together.add(parts)
    assert apart.largest == together.largest
    np.testing.assert_allclose(apart.weights, together.weights, rtol=1e-12)


def test_weights_are_counts_in_shares_of_each_images_squares():
    histogram = histogram_of(torch.tensor([3.0, 0.0, -4.0]), torch.tensor([0.5]), torch.zeros(4))
    occupied = {histogram.magnitudes[index]: histogram.weights[index] for index in np.flatnonzero(histogram.weights)}
    assert list(occupied) == pytest.approx([0.5, 3, 4], abs=8 / BINS)
    assert list(occupied.values()) == pytest.approx([1 / 0.25, 1 / 25, 1 / 25])


def test_an_image_out_of_all_proportion_does_not_set_the_range():
    """Of a hundred, one is thirty times as bright; the others lose little for it."""
    images = [torch.randn(2000) for _ in range(99)]
    usual = histogram_of(*images).range("int8")
    found = histogram_of(*images, 30 * torch.randn(2000))
    assert found.largest > 20 * usual
    assert found.range("int8") < 6 * usual


def test_a_power_of_two_has_a_bin_of_its_own():
    """At the end of a range it would be counted elsewhere than when the range grew later."""
    assert histogram_of(torch.tensor([4.0])).bound == 8
    later, before = (histogram_of(*map(torch.tensor, values)) for values in ([[4.0], [100.0]], [[100.0], [4.0]]))
    assert (later.weights == before.weights).all()


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(5)], ids=["none", "zeros"])
def test_nothing_but_zeros(values, precision):
    assert histogram_of(values).range(precision) == 0


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("value", [1e-30, 1.0, 3e38])
def test_a_single_value_is_covered(value, precision):
    found = histogram_of(torch.tensor([value])).range(precision)
    assert found == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number(value):
    histogram = histogram_of(torch.ones(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        histogram.add(torch.tensor([[1.0, value]]))
    assert histogram.weights.sum() == pytest.approx(1)


def test_one_outlier_among_many():
    """A normal distribution has nearly nothing beyond 5; one value of 40 must not set its steps. To the squared error
    it counts as much as 64 values that are off by 5, so half of it is covered."""
    values = torch.cat([torch.randn(200_000), torch.tensor([40.0])])
    assert 2.5 < histogram_of(values).range("int8") < 21


def test_equally_frequent_values_are_all_covered():
    assert histogram_of(torch.linspace(-1, 1, 100_000)).range("int8") == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("tail", ["normal", "laplace", "relu", "outliers"])
def test_the_range_is_the_best_for_the_format(tail, precision):
    """No other range on a fine grid errs noticeably less on the values themselves."""
    values = torch.randn(50_000)
    if tail == "laplace":
        values = torch.distributions.Laplace(0.0, 1.0).sample((50_000,))
    if tail == "relu":
        values = values.relu()
    if tail == "outliers":
        values[:50] *= 5
    histogram = histogram_of(values)
    found = rounding_error(values, histogram.range(precision), precision)
    others = [
        rounding_error(values, histogram.largest * share, precision)
        for share in torch.linspace(0.05, 1.1, 106).tolist()
    ]
    assert found <= 1.03 * min(others)


def test_fp8_covers_what_int8_clips():
    """Steps of int8 are equal, those of fp8 grow with the value: rare large ones cost the others nothing."""
    histogram = histogram_of(torch.cat([torch.randn(200_000), torch.tensor([100.0])]))
    assert histogram.range("int8") < 60
    assert histogram.range("fp8") > 80
