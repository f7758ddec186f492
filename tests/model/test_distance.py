"""How far tensors are apart: relative errors, and the share of images with the same class."""

import math

import pytest
import torch

from conformer_fast.model.distance import relative_error, top1_agreement

SCORES = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, -1.0], [0.0, 0.0, 0.5], [1.0, 2.0, 3.0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_agreement_with_other_scores(dtype):
    other = torch.tensor([[0, 9, 8], [0, 1, 0], [-3, -2, -1], [0, 0, 1]], dtype=dtype)  # of classes 1, 1, 2, 2
    assert top1_agreement(SCORES, other) == 0.75
    assert top1_agreement(other, SCORES) == 0.75


def test_agreement_with_classes():
    assert top1_agreement(SCORES, torch.tensor([1, 0, 2, 2])) == 1.0
    assert top1_agreement(SCORES, torch.tensor([0, 1, 1, 2], dtype=torch.int32)) == 0.25


def test_agreement_is_exact():
    """A third, in more digits than fp32 has."""
    assert top1_agreement(torch.eye(3), torch.zeros(3, dtype=torch.int64)) == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_agrees_with_nothing(value):
    broken = SCORES.clone()
    broken[1, 0] = broken[3, 1] = value  # one is the class, the other is not
    assert top1_agreement(broken, SCORES) == 0.5
    assert top1_agreement(SCORES, broken) == 0.5
    assert top1_agreement(broken, broken) == 0.5
    assert top1_agreement(broken, SCORES.argmax(-1)) == 0.5


def test_no_image_has_no_agreement():
    assert math.isnan(top1_agreement(SCORES[:0], SCORES[:0]))


@pytest.mark.parametrize(
    ("value", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),  # a ReLU that never opens
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 9.0], [3.0, 4.0], 1.0),
        ([1e-30, 0.0], [0.0, 1e-28], pytest.approx(1.0, rel=1e-3)),
        ([math.nan, 0.0], [3.0, 4.0], None),
        ([math.inf, 0.0], [3.0, 4.0], None),
        ([math.inf, 0.0], [math.inf, 0.0], None),
        ([1.0, 0.0], [math.inf, 0.0], None),
        ([1.0, 0.0], [math.nan, 0.0], None),
    ],
    ids=str,
)
def test_relative_error(value, expected, error):
    result = relative_error(torch.tensor(value), torch.tensor(expected))
    assert math.isnan(result) if error is None else result == error


def test_relative_error_of_any_dtype():
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert relative_error(torch.tensor([3.0, 9.0], dtype=dtype), expected) == 1.0
        assert relative_error(torch.tensor([3.0, 9.0]), expected.to(dtype)) == 1.0


def test_error_where_nothing_is_expected_is_never_small():
    result = relative_error(torch.tensor([1e-3]), torch.tensor([0.0]))
    assert not result <= 1e300
