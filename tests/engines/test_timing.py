"""Timing: turns, warm-up and ratios, with a clock that the test controls."""

from __future__ import annotations

import pytest
import torch

from conformer_fast.engines.timing import seconds_in_turn, seconds_of, time_in_turn


def test_speedup_is_the_median_over_turns_after_a_warm_up():
    now = [0.0]
    calls = []

    def candidate(name, durations):
        remaining = iter(durations)

        def call(images):
            calls.append(name)
            now[0] += next(remaining)

        return call

    candidates = {"slow": candidate("slow", [99, 4, 8, 6]), "fast": candidate("fast", [99, 2, 2, 2])}
    result = time_in_turn(candidates, torch.zeros(1), rounds=3, clock=lambda: now[0])
    assert calls == ["slow", "fast"] * 4
    assert result["slow"].median == 6
    assert result["slow"].speedup == 1
    assert result["fast"].speedup == pytest.approx(3)  # of 2, 4 and 3
    assert (result["slow"].low, result["slow"].high) == (4, 8)


def test_round_by_round():
    now, heard = [0.0], []
    remaining = iter([99, 4, 8])

    def call(images):
        now[0] += next(remaining)

    found = seconds_in_turn({"one": call}, torch.zeros(1), 2, lambda: now[0], lambda: heard.append(now[0]))
    assert found == {"one": [4, 8]}
    assert heard == [103, 111]  # after each round, and not after the warm-up


def test_a_call_ends_when_the_gpu_has(monkeypatch):
    now, given = [0.0], []

    class OnGPU:
        is_cuda, device = True, "cuda:1"

    def call(images):
        given.append(images)
        now[0] += 1

    def finish(device):
        assert device == "cuda:1"
        now[0] += 10

    images = OnGPU()
    monkeypatch.setattr(torch.cuda, "synchronize", finish)
    assert seconds_of(call, images, lambda: now[0]) == 11
    assert given == [images]
