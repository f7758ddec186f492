"""conformer-fast tune."""

from __future__ import annotations

from pathlib import Path

import pytest

import conformer_fast as cf

tuning = pytest.importorskip("conformer_fast.engines.triton.tuning")
RULE = tuning.Tile(64, 64, 32, 4, 3)
TUNED = (
    tuning.Tuned("attention B1", RULE, "pytorch", {RULE: 3e-6, "pytorch": 2e-6}, {}),
    tuning.Tuned("heads", RULE, RULE, {RULE: 5e-6}, {"pytorch": "RuntimeError: no"}),
)
ARGUMENTS = ("tune", "--models", "digits", "--precision", "int8", "--size", "32", "--batch", "8", "1")


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; the GPU has room for a batch of 1 alone."""
    calls = []

    def tune(models, batches, *, size, precision, each):
        calls.append((models, batches, size, precision))
        for tuned in TUNED:
            each(tuned)
        return cf.Tuning("NVIDIA X", precision, Path("x.json"), TUNED, (("digits", 8),) if 8 in batches else ())

    monkeypatch.setattr(cf, "tune", tune)
    return calls


def test_it_prints_what_was_measured(run, asked):
    status, out, err = run(*ARGUMENTS[:-2], "1")
    assert (status, err) == (0, "")
    assert asked == [(["digits"], [1], 32, "int8")]
    head, first, second, last = out.splitlines()
    assert head == tuning.Tuned.TABLE.head
    assert first.split() == ["attention", "B1", "64x64x32", "w4", "s3", "3.0", "pytorch", "2.0", "1.50x"]
    assert second.split()[0] == "heads"
    assert last == "NVIDIA X, int8: 2 problems, 1 with another choice than the rule's; written to x.json"


def test_a_batch_without_room_is_status_1(run_json, asked):
    status, result, err = run_json(*ARGUMENTS)
    assert (status, err) == (1, "conformer-fast tune: digits: the GPU has no room for a batch of 8\n")
    assert result["no_room"] == [{"model": "digits", "batch": 8}]
    assert (result["gpu"], result["precision"], result["file"]) == ("NVIDIA X", "int8", "x.json")
    assert [entry["problem"] for entry in result["tuned"]] == ["attention B1", "heads"]
    assert result["tuned"][0]["gain"] == pytest.approx(1.5)
    assert result["tuned"][1]["dropped"] == {"pytorch": "RuntimeError: no"}
