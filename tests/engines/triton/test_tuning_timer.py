"""Offline tuning: what its timer measures, on a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tuning_samples import FAST, SLOW

from conformer_fast.engines.triton import tuning


class FakeCUDA:
    """As much of torch.cuda as the timer uses: a clock in milliseconds, which launches move, and graphs of launches."""

    def __init__(self) -> None:
        self.now, self.recording, self.evicted = 0.0, None, True
        self.log: list[str] = []

    def launch(self, cold: float, warm: float) -> None:
        if self.recording is not None:
            self.recording.append((cold, warm))
        else:
            self.now += cold if self.evicted else warm
            self.evicted = False

    def install(self, monkeypatch) -> None:
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                assert outer.recording is None
                self.time = outer.now

            def elapsed_time(self, end):
                return end.time - self.time

        class Graph:
            def replay(self):
                outer.log.append(f"replay {len(self.launches)}")
                for launch in self.launches:
                    outer.launch(*launch)

        class Recording:
            def __init__(self, graph, pool, stream, capture_error_mode):
                assert (pool, capture_error_mode) == ("pool", "thread_local")
                self.graph = graph

            def __enter__(self):
                outer.recording = self.graph.launches = []

            def __exit__(self, *_):
                outer.recording = None

        class Nothing(SimpleNamespace):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        class OtherData:
            def view(self, _):
                return self

            def sum(self):
                outer.evicted = True
                outer.now += 1000  # is not to be counted

        for name, value in {
            "device": lambda _: Nothing(),
            "stream": lambda _: Nothing(),
            "synchronize": lambda *_: None,
            "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1 << 20),
            "Stream": lambda priority: SimpleNamespace(synchronize=lambda: None),
            "graph_pool_handle": lambda: "pool",
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Recording,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: OtherData())


def test_times_are_of_a_launch_in_a_graph_after_the_weights_are_evicted(monkeypatch):
    cuda = FakeCUDA()
    cuda.install(monkeypatch)
    short, long = lambda: cuda.launch(0.021, 0.001), lambda: cuda.launch(0.5, 0.5)
    times = tuning.CUDATimer(torch.device("cuda:0"))({FAST: [short] * 20, SLOW: [long] * 20})
    assert times[FAST] == pytest.approx([(0.021 + 19 * 0.001) / 20 / 1e3] * tuning.ROUNDS)
    assert times[SLOW] == pytest.approx([0.5 / 1e3] * tuning.ROUNDS)
    assert cuda.log[2:] == ["replay 20", "replay 4"] * tuning.ROUNDS  # in turn; a graph of long launches holds fewer
