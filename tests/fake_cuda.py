"""CUDA's streams, events and graphs on the CPU, so that the CUDA executor's own code runs where there is no GPU.

A recorded graph holds the operators that ran while it was recorded; a replay runs them again and writes their results
where they were. So inputs are read from, and outputs written to, memory that never moves, as on a GPU. What CUDA or
PyTorch refuses is refused here too: waiting on the host while recording, a stream that is forked and not joined, two
runs in the same memory that nothing orders, a memory pool whose last graph is gone.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conformer_fast.engines.triton import graphs as graphs_module
from conformer_fast.engines.triton.backend import Triton

DEVICE = torch.device("cpu")  # where the pretended GPU is
FREE, TOTAL = 1_000_000, 80_000_000  # bytes of its memory


class RefusedError(RuntimeError):
    """What CUDA or PyTorch would have refused."""


@dataclass(eq=False)
class FakeCUDA:
    """What happened: the streams that did each thing, in order, and the live graphs of each pool of memory.

    spoilt: whether the recording under way is to fail at its end
    runs:   how often each memory was worked in; `finished` the same, as far as the host has waited for it
    """

    log: list[tuple[str, Any]] = field(default_factory=list)
    graphs: Counter = field(default_factory=Counter)
    dead_pools: set = field(default_factory=set)
    spoilt: bool = False
    replays: int = 0
    runs: Counter = field(default_factory=Counter)
    finished: Counter = field(default_factory=Counter)
    handles: WeakValueDictionary[int, FakeStream] = field(default_factory=WeakValueDictionary)
    current: threading.local = field(default_factory=threading.local)
    pools: dict[int, Iterator[FakeStream]] = field(default_factory=dict)
    numbers: itertools.count = field(default_factory=itertools.count)

    @property
    def stream(self) -> FakeStream:
        """The thread's current stream; each thread starts on one of its own."""
        if not hasattr(self.current, "stream"):
            self.current.stream = FakeStream(self)
        return self.current.stream

    def new_stream(self, priority: int = 0) -> FakeStream:
        """PyTorch has 32 of each priority, which it gives out in turn."""
        if priority not in self.pools:
            self.pools[priority] = itertools.cycle([FakeStream(self) for _ in range(32)])
        return next(self.pools[priority])

    def work_in(self, memory: Iterable[Hashable], stream: FakeStream) -> None:
        """Runs something on `stream` that writes there. What records is checked when it is replayed."""
        if stream.recording:
            stream.recording.memory.update(memory)
            return
        for place in memory:
            if max(stream.after[place], self.finished[place]) < self.runs[place]:
                raise RefusedError("the run before, in the same memory, may still be going on")
            self.runs[place] += 1
            stream.after[place] = self.runs[place]

    def wait_on_the_host(self, after: Counter | None = None) -> None:
        if self.stream.recording:
            raise RefusedError("waiting on the host while recording")
        self.log.append(("wait on the host", None))
        self.finished |= self.runs if after is None else after

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        """As torch.cuda.stream."""
        before, self.current.stream = self.stream, stream
        try:
            yield
        finally:
            self.current.stream = before

    def streams(self, what: str) -> list[Any]:
        return [stream for kind, stream in self.log if kind == what]


class FakeStream:
    def __init__(self, cuda: FakeCUDA) -> None:
        self.cuda, self.number = cuda, next(cuda.numbers)
        self.cuda_stream = self.number + 1  # its address; 0 is the default stream's
        cuda.handles[self.cuda_stream] = self
        self.recording: FakeGraph | None = None
        self.after: Counter = Counter()  # what is issued next comes after this many runs in each memory

    def __repr__(self) -> str:
        return f"stream {self.number}"

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(("wait", self))
        self.after |= event.after

    def wait_stream(self, other: FakeStream) -> None:
        if other.recording:
            self.recording = other.recording
            self.recording.branches |= {self, other} - {self.recording.stream}
            self.recording.unjoined -= {other} if self is self.recording.stream else set()
            self.recording.unjoined |= {self} - {self.recording.stream}
        elif self.recording:
            raise RefusedError("a stream that records waits for one that does not")
        self.after |= other.after

    def synchronize(self) -> None:
        self.cuda.wait_on_the_host(self.after)


class FakeEvent:
    def __init__(self, cuda: FakeCUDA) -> None:
        self.cuda, self.after = cuda, Counter()

    def record(self, stream: FakeStream) -> None:
        self.cuda.log.append(("done", stream))
        self.after = stream.after.copy()

    def synchronize(self) -> None:
        self.cuda.wait_on_the_host(self.after)


class FakeGraph(TorchDispatchMode):
    """Notes every operator while it records, with its arguments and results."""

    def __init__(self, cuda: FakeCUDA) -> None:
        super().__init__()
        self.cuda = cuda
        self.steps: list[tuple] = []
        self.memory: set[Hashable] = set()
        self.branches: set[FakeStream] = set()
        self.unjoined: set[FakeStream] = set()
        self.held = False  # its pool

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be imported, which takes longer than what is tested

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.cuda.wait_on_the_host()
        stream = self.cuda.stream
        if stream is not self.stream:
            self.cuda.log.append(("beside", stream))
            self.unjoined.add(stream)
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str = "global", **_: Any) -> None:
        if capture_error_mode != "thread_local":
            raise RefusedError("other threads may not use CUDA meanwhile")
        if pool in self.cuda.dead_pools:
            raise RefusedError("use_count > 0 INTERNAL ASSERT FAILED")
        self.stream, self.pool, self.held = self.cuda.stream, pool, True
        self.memory = {pool}
        self.stream.recording = self
        self.cuda.graphs[pool] += 1
        self.cuda.log.append(("graph", self.stream))
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)
        for stream in (self.stream, *self.branches):
            stream.recording = None
        if self.unjoined or self.cuda.spoilt:
            self.held = self.cuda.spoilt = False
            self.cuda.dead_pools.add(self.pool)  # PyTorch stays at recording into it, and keeps its memory for ever
            raise RefusedError("a forked stream was not joined, or another error spoilt the recording")

    def replay(self) -> None:
        stream = self.cuda.stream
        self.cuda.work_in(self.memory, stream)
        self.cuda.replays += 1
        self.cuda.log.append(("replay", stream))
        with torch.inference_mode(), torch.autocast(DEVICE.type, enabled=False):  # a GPU's replay knows no modes
            for func, args, kwargs, recorded in self.steps:
                for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(recorded), strict=True):
                    if not isinstance(new, torch.Tensor):
                        continue
                    if new.data_ptr() != old.data_ptr():  # else it is a view, or was written in place
                        old.copy_(new)

    def reset(self) -> None:
        self.steps.clear()
        if self.held:
            self.held = False
            self.cuda.graphs[self.pool] -= 1
            if not self.cuda.graphs[self.pool]:
                del self.cuda.graphs[self.pool]
                self.cuda.dead_pools.add(self.pool)

    __del__ = reset


class OutOfMemory(TorchDispatchMode):
    """Inside, in this thread, the operator after the next `count` finds no memory."""

    def __init__(self, count: int, error: Callable[[], Exception] | None = None) -> None:
        super().__init__()
        self.left = count
        self.error = error or (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == -1:
            raise self.error()
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[FakeCUDA]:
    """Inside, torch.cuda is pretended, and backend "triton" runs the fused model on the CPU."""
    import pytest  # here, as the many processes with a stand-in go without

    cuda = FakeCUDA()
    pools = itertools.count(1)

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        yield

    pretended = {
        "Stream": cuda.new_stream,
        "Event": lambda: FakeEvent(cuda),
        "CUDAGraph": lambda: FakeGraph(cuda),
        "graph_pool_handle": lambda: (0, next(pools)),
        "current_stream": lambda: cuda.stream,
        "is_current_stream_capturing": lambda: cuda.stream.recording is not None,
        "stream": cuda.on,
        "device": on_device,
        "synchronize": cuda.wait_on_the_host,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (FREE, TOTAL),
        "get_device_capability": lambda device=None: (8, 9),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pretended.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)  # torch.cuda.graph calls it
        patch.setattr(Triton, "missing", lambda self: None)
        patch.setattr(Triton, "torch_device", lambda self: str(DEVICE))
        patch.setattr(graphs_module, "_devices", {})
        yield cuda
        for device in graphs_module._devices.values():
            device._collect = lambda: None  # for engines that outlive the pretence
