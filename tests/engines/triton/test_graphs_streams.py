"""The CUDA executor on streams and in threads, on a pretended torch.cuda: what waits for what."""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from executor_samples import assert_same, equal, images, inference_model
from fake_cuda import OutOfMemory
from graphs_samples import Faulty
from torch import Tensor

from conformer_fast.engines.cuda import GPUMemoryError
from conformer_fast.engines.triton import graphs
from conformer_fast.engines.triton.graphs import CUDAGraphEngine


def test_replay_is_all_on_the_callers_stream_and_never_waits_on_the_host(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(2, 3, 32, 32)
    engine(batch)
    mine = torch.cuda.Stream()
    cuda.log.clear()
    with torch.cuda.stream(mine):
        engine(batch)
        assert torch.cuda.current_stream() is mine
    assert cuda.log == [("wait", mine), ("replay", mine), ("done", mine)]


def test_callers_stream_is_left_as_it_was(cuda, model):
    engine, mine = CUDAGraphEngine(model), torch.cuda.Stream()
    with torch.cuda.stream(mine):
        engine(images(1, 3, 32, 32))
        assert torch.cuda.current_stream() is mine
        with OutOfMemory(40), pytest.raises(GPUMemoryError):
            engine(images(2, 3, 32, 32))
        assert torch.cuda.current_stream() is mine
    recorded_on = set(cuda.streams("graph"))
    assert len(recorded_on) == 1  # PyTorch reuses a pool's memory on the stream it was first used on
    assert mine not in recorded_on


def test_no_other_thread_gets_the_stream_that_records(cuda, model):
    """PyTorch hands out the same streams again and again; what runs on one that records is recorded."""
    CUDAGraphEngine(model)(images(1, 3, 32, 32))
    (recorded_on,) = cuda.streams("graph")
    branches = cuda.streams("beside")
    assert branches
    assert not {recorded_on, *branches} & {torch.cuda.Stream() for _ in range(100)}


def test_replays_on_other_streams_come_after_each_other(cuda):
    """The pretended CUDA refuses two replays that nothing orders, as they would share their memory at once."""
    engines = [CUDAGraphEngine(inference_model()) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    expected = [engine(images(1, 3, 32, 32)) for engine in engines]
    for stream, index in itertools.product(streams, range(2)):
        with torch.cuda.stream(stream):
            assert equal(engines[index](images(1, 3, 32, 32)), expected[index])
    assert cuda.replays == 8


def test_many_threads_at_once(cuda, model, monkeypatch):
    """Three graphs are kept of five that are needed, so threads also drop what others are about to use."""
    monkeypatch.setattr(graphs, "GRAPHS_KEPT", 3)
    engine = CUDAGraphEngine(model)
    batches = [images(B, 3, 32, W, seed=B) for B, W in [(1, 32), (2, 32), (4, 32), (1, 48), (2, 48)]]
    serial = [engine(batch) for batch in batches]
    start = threading.Barrier(6)

    def work(seed: int) -> list[int]:
        order = random.Random(seed).choices(range(len(batches)), k=12)
        start.wait()
        return [index for index in order if not equal(engine(batches[index]), serial[index])]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [[]] * 6
    assert cuda.graphs.total() == 3


def test_threads_that_need_the_same_graph_record_it_once(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    start = threading.Barrier(6)

    def work(_: int) -> tuple[Tensor, ...]:
        start.wait()
        return engine(batch)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, range(6)))
    assert all(equal(result, results[0]) for result in results)
    assert len(cuda.streams("graph")) == 1
    assert len(set(cuda.streams("replay"))) == 6  # each on its own stream


def test_kernels_are_built_while_others_replay(cuda, model):
    """Building may take seconds. Only the recording itself holds up other threads."""
    ready, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    ready(batch)
    building, go_on = threading.Event(), threading.Event()

    class Slow(Faulty):
        def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
            building.set()
            assert go_on.wait(20)
            return self.model(batch)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(CUDAGraphEngine(Slow(model, 0)), batch)
        assert building.wait(20)
        ready(batch)
        go_on.set()
        assert_same(slow.result(), model(batch))
