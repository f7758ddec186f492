"""The TensorRT engine on streams and in threads: what waits for what, what is recorded, and where."""

import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from executor_samples import assert_same, equal, images
from fake_tensorrt import TensorRT
from tensorrt_samples import call_under_way, engine_of, lanes, reference
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.tensorrt import engine as engine_module
from conformer_fast.engines.triton.graphs import CUDAGraphEngine


class Operators(TorchDispatchMode):
    """Notes in the log when operators run."""

    def __init__(self, cuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "view" not in str(func) and "slice" not in str(func):
            self.cuda.log.append((str(func), self.cuda.stream))
        return func(*args, **(kwargs or {}))


def test_run_is_a_replay_between_two_copies_on_the_callers_stream(cuda):
    engine, batch = engine_of(TensorRT(cuda)), images(2, 3, 16, 16)
    engine(batch)
    mine = torch.cuda.Stream()
    cuda.log.clear()
    with torch.cuda.stream(mine), Operators(cuda):
        engine(batch)
        assert torch.cuda.current_stream() is mine
    kinds = [kind for kind, _ in cuda.log]
    assert {stream for _, stream in cuda.log} == {mine}
    assert kinds[:3] == ["wait", "aten.copy_.default", "replay"]
    assert kinds[-3:] == ["aten.clone.default", "aten.clone.default", "done"]


def test_how_contexts_are_made(trt):
    engine_of(trt)(images(1, 3, 16, 16))
    assert trt.contexts == [("user managed", "whole graph", "eager") if trt.rtx else "user managed"]


def test_recording_happens_on_streams_that_no_caller_gets(cuda):
    trt = TensorRT(cuda)
    engine = engine_of(trt)
    engine(images(1, 3, 16, 16))
    (recorded_on,) = cuda.streams("graph")
    assert {stream for _, stream in trt.runs} <= {recorded_on, *cuda.streams("replay")}
    assert recorded_on not in {torch.cuda.Stream() for _ in range(100)}


def test_calls_on_other_streams_come_after_each_other(trt, cuda):
    """The pretended CUDA refuses two runs in the same memory that nothing orders."""
    engine = engine_of(trt)
    batches = [images(B, 3, 16, 16) for B in (1, 2, 5)]
    for stream in [torch.cuda.Stream() for _ in range(3)]:
        with torch.cuda.stream(stream):
            for batch in batches:
                assert_same(engine(batch), reference(batch))
    assert len(lanes(cuda)) == 1


def test_first_call_in_each_of_many_threads(trt, cuda):
    engine = engine_of(trt)
    batch = images(2, 3, 16, 16)
    start = threading.Barrier(8)

    def call(_):
        start.wait(20)
        return engine(batch)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(call, range(8)):
            assert_same(result, reference(batch))
    assert 1 <= len(lanes(cuda)) <= 8
    assert len(trt.contexts) == len(lanes(cuda))


def test_calls_at_the_same_time_take_different_lanes(trt, cuda):
    engine, batch = engine_of(trt), images(2, 3, 16, 16)
    engine(batch)
    with call_under_way(engine, batch):
        assert len(lanes(cuda)) == 1
        assert_same(engine(batch), reference(batch))
        assert len(lanes(cuda)) == 2
    engine(batch)
    assert len(lanes(cuda)) == 2


@pytest.mark.parametrize("seed", range(3))
def test_threads_streams_and_shapes_at_random(seed, trt, cuda, monkeypatch):
    monkeypatch.setattr(engine_module, "SHAPES_KEPT", 3)
    engine = engine_of(trt)
    batches = [images(B, 3, size, size, seed=B) for B, size in [(1, 16), (3, 16), (2, 24), (7, 32), (12, 16)]]
    streams = [torch.cuda.Stream() for _ in range(4)]

    def work(worker: int) -> None:
        choose = random.Random(f"{seed} {worker}")
        for _ in range(12):
            batch = choose.choice(batches)
            with torch.cuda.stream(choose.choice(streams)):
                assert_same(engine(batch), reference(batch))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert 1 <= len(lanes(cuda)) <= 4
    gc.collect()
    assert trt.freed_early == 0


def test_new_shape_waits_until_nobody_records(trt):
    """PyTorch records one graph at a time, and TensorRT-RTX should not record beside it. Known shapes go on."""
    engine, known, new = engine_of(trt), images(1, 3, 16, 16), images(2, 3, 16, 16)
    with call_under_way(engine, known):
        expected = engine(known)
    with ThreadPoolExecutor(2) as pool:
        with engine_module.RECORDING:
            call = pool.submit(engine, new)
            time.sleep(0.1)  # until it has one of the two lanes
            assert equal(pool.submit(engine, known).result(timeout=20), expected)
            assert not wait([call], timeout=0.2).done
        assert_same(call.result(), reference(new))


def test_beside_the_triton_executor(cuda):
    """They share nothing but the lock of recordings."""
    from executor_samples import inference_model

    model, batch = inference_model(), images(2, 3, 32, 32)
    other, engine = CUDAGraphEngine(model), engine_of(TensorRT(cuda))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(engine, batch), pool.submit(other, batch)] * 3
        for index, call in enumerate(calls):
            assert_same(call.result(), model(batch) if index % 2 else reference(batch))


def test_refuses_to_run_inside_a_recording(trt, cuda):
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    engine(batch)
    recording = torch.cuda.graph(
        torch.cuda.CUDAGraph(), (0, 99), torch.cuda.Stream(), capture_error_mode="thread_local"
    )
    with recording, pytest.raises(RuntimeError, match="is a CUDA graph already; call it outside of"):
        engine(batch)
    assert_same(engine(batch), reference(batch))
