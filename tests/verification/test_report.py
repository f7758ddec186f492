"""A report's rows and verdict: what is within, what is over, and what cannot be judged."""

import json
import math

import pytest
import torch
from verify_samples import LOGITS, images

from conformer_fast.verification.floors import FLOORS
from conformer_fast.verification.verify import Report, Row, report_of


@pytest.mark.parametrize("precision", FLOORS)
def test_nothing_below_the_floor_is_within(precision):
    """However much PyTorch errs itself: here it returns the same."""
    exact = {name: images(8, 7).double() for name in LOGITS}
    for share, within in ((0.99, True), (1.01, False)):
        found = {name: scores * (1 + share * FLOORS[precision].error) for name, scores in exact.items()}
        report = report_of("reference", precision, found, {}, exact, found)
        assert report.within is within
        assert f"{share:.2f} of its bound, the floor of {FLOORS[precision].sqnr_db:g} dB" in report.verdict


@pytest.mark.parametrize(
    ("differ", "of", "precision", "within"),
    [
        (1, 1, "fp32", True),
        (2, 2, "fp32", False),
        (1, 64, "fp32", True),
        (64, 64, "bf16", False),
        (4, 4, "int8", True),
        (5, 5, "int8", False),
        (32, 100, "int8", True),  # the expected 20, three times the deviation of 4, and one
        (34, 100, "int8", False),
        (270, 1000, "int8", False),
    ],
)
def test_classes_agree_often_enough(differ, of, precision, within):
    """Of scores with small errors: two classes are nearly equal, beside a third that is far below."""
    true = torch.tensor([10.0, 10.0 - 1e-7, -10.0], dtype=torch.float64).repeat(of, 1)
    found = true.clone()
    found[:differ, :2] = true[:differ, :2].flip(1)
    report = report_of("toy", precision, {"logits": found}, {}, {"logits": true}, {})
    assert all(row.within for row in report.results)
    assert report.top1_agreement == {"sum": (of - differ) / of}
    assert report.within is within
    if not within:
        share = f"{(of - differ) / of:.1%} of {of} images, at least {FLOORS[precision].agreement:.0%} should"
        assert report.verdict.startswith(f"NOT within the bound for {precision}: the class agrees for {share}")


def test_nan_agrees_with_nothing():
    broken = {name: torch.full((3, 7), math.nan) for name in LOGITS}
    report = report_of("toy", "bf16", broken, {}, broken, broken)
    assert report.top1_agreement == {"conv": 0.0, "trans": 0.0, "sum": 0.0}
    assert not report.within
    assert report.verdict.startswith("NOT within the bound for bf16: conv_logits has values that are not finite")


@pytest.mark.parametrize(("error", "bound", "within"), [(1.0, 1.0, True), (1.01, 1.0, False), (0.0, 1e-6, True)])
def test_row(error, bound, within):
    row = Row("conv_logits", error, 0.5, bound)
    assert row.within is within
    assert str(row).startswith("conv_logits ")
    assert str(row).endswith("over") is not within
    assert row.sqnr_db == (math.inf if error == 0 else pytest.approx(-20 * math.log10(error)))


@pytest.mark.parametrize(("error", "bound"), [(math.nan, 1.0), (0.0, math.nan), (math.nan, math.nan)])
def test_row_that_cannot_be_judged_is_not_within(error, bound):
    row = Row("conv_logits", error, math.nan, bound)
    report = Report("reference", "fp32", 1, (Row("trans_logits", 0.0, 0.0, 1.0), row), (), {})
    assert not row.within
    assert not report.within
    assert report.verdict.startswith("NOT within the bound for fp32: conv_logits")
    json.dumps(report.to_dict(), allow_nan=False)


def test_verdict_names_the_worst():
    rows = (Row("conv_logits", 2e-7, 0, 1e-6), Row("trans_logits", 5e-7, 0, 1e-6))
    assert Report("reference", "fp32", 1, rows, (), {}).verdict == (
        "within the bound for fp32: trans_logits errs by 5e-07, 0.50 of its bound"
    )
