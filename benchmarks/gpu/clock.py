"""Time on the GPU, by CUDA events: how long it works on a call while others wait behind it.

How long a caller waits for one call, on any device, is what engines/timing.py measures.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WARM_UPS = 3
SECONDS = 0.3  # that each candidate is timed for, at least
ROUNDS = 10  # in which candidates take turns
MOST_CALLS = 1000  # in one turn
GRAPH_ROUNDS = 3  # of a graph, which holds many calls: hundreds of graphs are timed


@dataclass(frozen=True)
class Times:
    """Seconds a call: the median, the 20 % and the 80 % quantile; speedup: over the first candidate, as the median
    of the rounds' ratios."""

    median: float
    low: float
    high: float
    calls: int
    speedup: float


def in_turn(
    candidates: Mapping[str, Callable[[], Any]],
    seconds: float = SECONDS,
    rounds: int | None = None,
    warm_ups: int | None = None,
) -> dict[str, Times]:
    """Times every candidate, in rounds, so that a clock that drifts hits all of them."""
    rounds, warm_ups, calls = rounds or ROUNDS, warm_ups or WARM_UPS, {}
    for name, call in candidates.items():
        turn(call, warm_ups)
        calls[name] = min(MOST_CALLS, math.ceil(seconds / rounds / statistics.median(turn(call, warm_ups))))
    turns = [{name: turn(call, calls[name]) for name, call in candidates.items()} for _ in range(rounds)]
    first = next(iter(candidates))
    medians = [{name: statistics.median(times) for name, times in one.items()} for one in turns]
    times = {name: sorted(time for one in turns for time in one[name]) for name in candidates}
    return {
        name: Times(
            median=statistics.median(own),
            low=own[round(0.2 * (len(own) - 1))],
            high=own[round(0.8 * (len(own) - 1))],
            calls=len(own),
            speedup=statistics.median(one[first] / one[name] for one in medians),
        )
        for name, own in times.items()
    }


def turn(call: Callable[[], Any], calls: int) -> list[float]:
    """Seconds of each of `calls` calls in a row, the host's part included where the GPU waits for it. One call before
    them brings back what other candidates drove out of the caches."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    call()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(events)]


def of_graph(calls: Sequence[Callable[[], Any]], seconds: float = 0.05) -> float:
    """Seconds of one of these calls, as the median over replays of a CUDA graph that makes them all, one by one."""
    for call in calls:  # builds kernels and prepares weights
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = in_turn({"graph": graph.replay}, seconds, GRAPH_ROUNDS, warm_ups=1)["graph"]
    return times.median / len(calls)
