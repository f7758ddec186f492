"""Timing: turns, warm-up and ratios, with a clock that the test controls."""

from __future__ import annotations

import pytest
import torch

from conformer_fast.verification import timing


def test_speedup_is_the_median_over_turns_after_a_warm_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = []

    def candidate(name, durations):
        remaining = iter(durations)

        def call(images):
            calls.append(name)
            now[0] += next(remaining)

        return call

    candidates = {"slow": candidate("slow", [99, 4, 8, 6]), "fast": candidate("fast", [99, 2, 2, 2])}
    result = timing.time_in_turn(candidates, torch.zeros(1), rounds=3)
    assert calls == ["slow", "fast"] * 4
    assert result["slow"].median == 6
    assert result["slow"].speedup == 1
    assert result["fast"].speedup == pytest.approx(3)  # of 2, 4 and 3
    assert (result["slow"].low, result["slow"].high) == (4, 8)
