"""The TensorRT engine's memory: what is said when there is none left, what lanes share, and when it is freed."""

import gc

import fake_tensorrt
import pytest
import torch
from executor_samples import assert_same, equal, images
from fake_cuda import FREE, TOTAL, OutOfMemory
from fake_tensorrt import SCRATCH
from tensorrt_samples import call_under_way, engine_of, lanes, reference

from conformer_fast.engines.cuda import GPUMemoryError
from conformer_fast.errors import EngineError


def test_out_of_memory_wherever_it_happens(trt):
    batch, small = images(5, 3, 24, 24), images(1, 3, 16, 16)
    engine = engine_of(trt)
    expected = engine(small)
    failures = 0
    while True:
        with OutOfMemory(failures):
            try:
                engine(batch)
                break
            except GPUMemoryError as error:
                assert error.__context__ is None  # noqa: PT017 - which would keep alive what the failed run made
        failures += 1
        assert equal(engine(small), expected)
    assert failures > 4
    assert_same(engine(batch), reference(batch))
    gc.collect()
    assert trt.freed_early == 0


def test_out_of_memory_gives_needed_and_free_bytes(trt):
    engine, batch = engine_of(trt), images(5, 3, 16, 24)
    with OutOfMemory(0), pytest.raises(torch.OutOfMemoryError) as caught:
        engine(batch)
    error = caught.value
    needed = SCRATCH + 4 * 8 * 3 * 16 * 24
    assert isinstance(error, GPUMemoryError)
    assert (error.free, error.total) == (FREE, TOTAL)
    assert str(error) == (
        f"a call with 5 16x24 images needs {needed:,} bytes, of which the engine takes {SCRATCH:,} for any batch; cpu "
        f"has {FREE:,} bytes free of {TOTAL:,}; free memory, make fewer calls at the same time, or build the engine "
        f"for smaller batches or images"
    )


@pytest.mark.parametrize(
    "message",
    ["Error Code 2: OutOfMemory (Requested size was 4096 bytes.)", "Error Code 1: Cuda Runtime (out of memory)"],
)
@pytest.mark.parametrize("call", ["context", "execute"])
def test_out_of_memory_inside_tensorrt(call, message, trt):
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    trt.refuse[call] = message
    with pytest.raises(GPUMemoryError, match="free memory, make fewer calls"):
        engine(batch)
    trt.refuse = {call: "Error Code 7: something else"}
    with pytest.raises(EngineError, match="something else"):
        engine(batch)
    trt.refuse.clear()
    assert_same(engine(batch), reference(batch))


def test_lanes_share_no_memory(trt, contexts, monkeypatch):
    engine, batch, sizes = engine_of(trt), images(1, 3, 16, 16), []
    give = fake_tensorrt.Context.set_device_memory

    def given(context, address, size):
        sizes.append(size)
        give(context, address, size)

    monkeypatch.setattr(fake_tensorrt.Context, "set_device_memory", given)
    with call_under_way(engine, batch):
        engine(batch)
    first, second = sorted(context.scratch for context in contexts)
    assert first + SCRATCH <= second
    assert sizes == [SCRATCH, SCRATCH]


def test_dropped_engine_is_freed_once_nothing_runs(trt, cuda, contexts):
    engine = engine_of(trt)
    with call_under_way(engine, images(1, 3, 16, 16)):
        engine(images(2, 3, 16, 16))
    assert len(contexts) == len(lanes(cuda)) == 2
    cuda.log.clear()
    del engine
    gc.collect()
    assert trt.freed_early == 0
    assert not cuda.graphs
    assert ("wait on the host", None) in cuda.log
    assert not contexts


def test_engine_dropped_inside_a_recording_is_freed_by_the_next_call(trt, cuda, contexts):
    """Freeing waits for the GPU, which would spoil the recording."""
    doomed, other = engine_of(trt), engine_of(trt)
    for engine in (doomed, other):
        engine(images(1, 3, 16, 16))
    del engine
    with torch.cuda.graph(torch.cuda.CUDAGraph(), (0, 99), torch.cuda.Stream(), capture_error_mode="thread_local"):
        del doomed
        gc.collect()
        assert len(contexts) == 2
    other(images(1, 3, 16, 16))
    assert len(contexts) == 1
    assert trt.freed_early == 0


def test_hundred_engines_leave_nothing(trt, cuda):
    def cycle() -> None:
        engine_of(trt)(images(1, 3, 16, 16))
        for kept in (cuda.log, cuda.dead_pools, trt.runs, trt.contexts):
            kept.clear()

    cycle()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        cycle()
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert not cuda.graphs
    assert trt.freed_early == 0
