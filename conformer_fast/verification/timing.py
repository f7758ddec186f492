"""Timing that survives a noisy machine: candidates take turns, and speed-ups are medians over the turns."""

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
    candidates: Mapping[str, Callable[[Tensor], object]], images: Tensor, rounds: int = 5
) -> dict[str, Timing]:
    """Calls every candidate once with `images` to warm it up, then all of them in turn, `rounds` times.

    A call has ended when the GPU, if the images are on one, has.
    """
    for call in candidates.values():
        _call(call, images)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            _call(call, images)
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {name: _summary(times, first) for name, times in seconds.items()}


def _call(call: Callable[[Tensor], object], images: Tensor) -> None:
    call(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _summary(times: list[float], first: list[float]) -> Timing:
    ordered = sorted(times)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.8))
    speedup = statistics.median(base / own for base, own in zip(first, times, strict=True))
    return Timing(statistics.median(times), low, high, speedup)
