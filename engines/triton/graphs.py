"""The CUDA executor: the inference model recorded once per shape as a CUDA graph, then replayed.

A batch runs in the next larger bucket: its images are copied into the bucket's first rows, the graph is replayed, and
the first rows of the outputs are copied out, all on the caller's stream. Nothing in this waits on the host, and the
replay itself allocates nothing and runs no Python.

All graphs on a GPU, of whatever model, are recorded into one pool of memory. So two must never run at once: each waits,
on the GPU, for the one before it (`Device`).
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.streams import TWO_STREAMS, side_stream
from conformer_fast.model.precision import tf32_as_asked

from ..cuda import OUT_OF_MEMORY, RECORDING, GPUMemoryError, bucket

GRAPHS_KEPT = 32  # of one engine; then the least recently used is dropped

Outputs = tuple[Tensor, ...]
Key = tuple[int, int, int]  # bucket, height, width


class CUDAGraphEngine:
    """images (B, in_channels, H, W), or what else the model reads, on the GPU -> one fp32 tensor (B, ...) per output.
    Callable from any thread.

    model: on the GPU to run on, in the precision to run in
    tune:  called before a bucket is recorded, with the model and the bucket's rows, height and width
    """

    def __init__(
        self, model: InferenceNetwork, tune: Callable[[InferenceNetwork, int, int, int], None] | None = None
    ) -> None:
        self._model, self._device, self._tune = model, shared(model.device), tune
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()
        weakref.finalize(self, self._device.retire, self._graphs, model).atexit = False

    def __call__(self, images: Tensor) -> Outputs:
        B, _, H, W = images.shape
        key = bucket(B), H, W
        while True:
            with self._device.turn():
                if key in self._graphs:
                    self._graphs.move_to_end(key)
                    return self._device.replay(self._graphs[key], images)
            self._record(key)

    def _record(self, key: Key) -> None:
        with RECORDING:
            if key in self._graphs:  # another thread was faster
                return
            if self._tune:
                with self._device.turn():
                    self._tune(self._model, *key)
            graph = self._device.record(self._model, *key)
            with self._device.turn():
                self._graphs[key] = graph
                if len(self._graphs) > GRAPHS_KEPT:
                    self._device.free(self._graphs.popitem(last=False)[1])


@dataclass
class Pool:
    """Memory that graphs share. PyTorch gives up a pool whose last graph is gone: its handle is then of no use."""

    handle: Any
    graphs: int = 0


@dataclass
class Graph:
    """A recorded run: it reads `images` and writes `outputs`, at addresses that never change."""

    images: Tensor
    outputs: Outputs
    graph: torch.cuda.CUDAGraph
    pool: Pool


class Device:
    """What all engines on one GPU share: the memory of their graphs, and the order in which these run.

    It knows of no engine, only of what dead ones leave behind (`retire`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._retired: deque[tuple[dict[Key, Graph], InferenceNetwork]] = deque()
        self._pool: Pool | None = None
        with torch.cuda.device(device):
            # Graphs are recorded on these. PyTorch has 32 streams of each priority and hands them out again and again:
            # of the usual priority, another thread might get the same one, and what it runs would be recorded too.
            self._stream, self._side = torch.cuda.Stream(priority=-1), torch.cuda.Stream(priority=-1)
            self._done = torch.cuda.Event()  # the end of the last replay, with its outputs copied

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other thread replays, records or frees graphs of this GPU."""
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a compiled model is a CUDA graph already; call it outside of torch.cuda.graph")
        try:
            with self._lock:
                yield
        finally:
            self._collect()

    def replay(self, graph: Graph, images: Tensor) -> Outputs:
        """Runs `graph` for these images on the current stream. Needs `turn`."""
        with torch.cuda.device(self.device), torch.no_grad():
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            try:
                B = len(images)
                graph.images[:B].copy_(images)  # from any strides and dtype
                graph.graph.replay()
                return tuple(_own(output[:B]) for output in graph.outputs)
            finally:
                self._done.record(stream)

    def record(self, model: InferenceNetwork, rows: int, height: int, width: int) -> Graph:
        """Raises GPUMemoryError when there is no room for it. Takes its `turn` itself, after the kernels are built."""
        graph = self._record_if_it_fits(model, rows, height, width)
        if graph is not None:
            return graph
        torch.cuda.empty_cache()  # what the failed run held
        free, total = torch.cuda.mem_get_info(self.device)
        raise GPUMemoryError(
            f"{self.device} has no room for the activations of {rows} {height}x{width} images in {model.dtype}: "
            f"{free:,} bytes are free of {total:,}; run smaller batches or free memory",
            free,
            total,
        )

    def _record_if_it_fits(self, model: InferenceNetwork, rows: int, height: int, width: int) -> Graph | None:
        dtype = model.dtype
        try:
            with torch.inference_mode(False):
                shape = rows, model.second_dimension, height, width
                images = torch.zeros(shape, dtype=dtype, device=self.device)  # rows that nothing fills are computed too
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), tf32_as_asked(dtype):
                outputs, graph, pool = self._capture(partial(model, images), two_streams=rows <= TWO_STREAMS)
        except RuntimeError as error:
            if not any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise
            return None
        return Graph(images, outputs, graph, pool)

    def _capture(self, run: Callable[[], Outputs], two_streams: bool) -> tuple[Outputs, torch.cuda.CUDAGraph, Pool]:
        side = self._side if two_streams else None
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()  # the weights may come from any stream
            # Builds the kernels and prepares the weights. Not on our streams: cuBLAS has a workspace for each, which
            # other threads' replays of what was recorded there use meanwhile.
            run()
            with self.turn(), torch.cuda.stream(self._stream), side_stream(side):
                pool = self._pool if self._pool and self._pool.graphs else Pool(torch.cuda.graph_pool_handle())
                self._pool = None  # a recording that fails may leave it unusable
                graph = torch.cuda.CUDAGraph()
                mode = "thread_local"  # other threads may allocate memory meanwhile
                with (
                    torch.cuda.graph(graph, pool.handle, self._stream, capture_error_mode=mode),
                    _joined(self._stream, side),
                ):
                    outputs = run()
                pool.graphs += 1
                self._pool = pool
                return outputs, graph, pool

    def free(self, graph: Graph) -> None:
        """Gives back a graph's memory. Needs `turn`."""
        self._done.synchronize()
        graph.graph.reset()
        graph.pool.graphs -= 1

    def retire(self, graphs: dict[Key, Graph], model: InferenceNetwork) -> None:
        """Takes over what a dead engine leaves: the last replay may still read its weights.

        Called by Python's garbage collector, so anywhere, even inside a `turn` of this thread.
        """
        self._retired.append((graphs, model))
        self._collect()

    def _collect(self) -> None:
        """Frees what is retired. Where it must not, inside a turn or a recording, the end of the next turn does."""
        while self._retired and not torch.cuda.is_current_stream_capturing() and self._lock.acquire(blocking=False):
            try:
                self._free_retired()
            finally:
                self._lock.release()

    def _free_retired(self) -> None:
        while self._retired:
            graphs, _model = self._retired.popleft()
            self._done.synchronize()
            while graphs:
                self.free(graphs.popitem()[1])


_devices: dict[torch.device, Device] = {}


def shared(device: torch.device) -> Device:
    """The one `Device` of a GPU."""
    return _devices.get(device) or _devices.setdefault(device, Device(device))


@contextmanager
def _joined(stream: torch.cuda.Stream, side: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside, `side` is part of what `stream` records. CUDA ends no recording that is not joined, whatever failed."""
    if side is None:
        yield
        return
    side.wait_stream(stream)
    try:
        yield
    finally:
        stream.wait_stream(side)


def _own(output: Tensor) -> Tensor:
    """A copy in fp32, in the usual order of memory."""
    return output.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
