"""Timing that survives a noisy machine: candidates take turns, and speed-ups are medians over the turns.

It is what a caller waits for one call, on a GPU from before it to the end of its work. How long the GPU itself works on
a call, while others wait behind it, is what benchmarks/gpu/clock.py measures, by the GPU's own clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, the 20 % and the 80 % quantile. speedup: over the first candidate, turn by turn."""

    median: float
    low: float
    high: float
    speedup: float


def time_in_turn(
    candidates: Mapping[str, Callable[[Tensor], object]],
    images: Tensor,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Calls every candidate once with `images` to warm it up, then all of them in turn, `rounds` times.

    clock: tells seconds, as the functions of the module `time` do
    """
    seconds = seconds_in_turn(candidates, images, rounds, clock)
    first = next(iter(seconds.values()))
    return {name: _summary(times, first) for name, times in seconds.items()}


def seconds_in_turn(
    candidates: Mapping[str, Callable[[Tensor], object]],
    images: Tensor,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """The same, round by round. after: is called after each round"""
    for call in candidates.values():
        seconds_of(call, images, clock)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            seconds[name].append(seconds_of(call, images, clock))
        after()
    return seconds


def seconds_of(
    call: Callable[[Tensor], object], images: Tensor, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call with `images`, which has ended when the GPU, if they are on one, has."""
    start = clock()
    call(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return clock() - start


def _summary(times: list[float], first: list[float]) -> Timing:
    ordered = sorted(times)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.8))
    speedup = statistics.median(base / own for base, own in zip(first, times, strict=True))
    return Timing(statistics.median(times), low, high, speedup)
