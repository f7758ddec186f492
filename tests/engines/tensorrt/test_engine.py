"""The TensorRT runtime: its own code, on a pretended TensorRT and torch.cuda; and TensorRT-RTX without a GPU."""

import gc
import json
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakSet

import fake_tensorrt
import pytest
import torch
from executor_samples import FORMS, assert_same, equal, images
from fake_cuda import FREE, TOTAL, OutOfMemory, fake_cuda
from fake_tensorrt import SCRATCH, TensorRT, expected, plan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.cuda import GPUMemoryError
from conformer_fast.engines.tensorrt import engine as engine_module
from conformer_fast.engines.tensorrt.engine import TensorRTEngine
from conformer_fast.engines.tensorrt.flavors import get_flavor
from conformer_fast.engines.tensorrt.kernel_cache import RuntimeCacheFile
from conformer_fast.engines.triton.graphs import CUDAGraphEngine
from conformer_fast.errors import EngineError
from conformer_fast.model.shapes import Shapes

CPU = torch.device("cpu")
LOGITS = ("conv_logits", "trans_logits")


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Python's collector leaves alone what was there before these tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def cuda():
    with fake_cuda() as pretended:
        yield pretended
        gc.collect()  # engines that an error's traceback kept would outlive the pretence


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def trt(request, cuda) -> TensorRT:
    return TensorRT(cuda, request.param)


@pytest.fixture
def rtx(cuda) -> TensorRT:
    return TensorRT(cuda, "tensorrt-rtx")


@pytest.fixture
def contexts(monkeypatch) -> WeakSet[fake_tensorrt.Context]:
    """The execution contexts that are alive."""
    alive: WeakSet[fake_tensorrt.Context] = WeakSet()
    make = fake_tensorrt.Engine.create_execution_context

    def made(engine, how):
        context = make(engine, how)
        if context is not None:
            alive.add(context)
        return context

    monkeypatch.setattr(fake_tensorrt.Engine, "create_execution_context", made)
    return alive


def engine_of(trt: TensorRT, names=LOGITS, cache=None, **changes) -> TensorRTEngine:
    return TensorRTEngine(plan(**changes), trt.flavor, names, CPU, cache)


def reference(batch: Tensor, outputs=LOGITS) -> list[Tensor]:
    results = expected(batch)
    return [results[name] for name in outputs]


def lanes(cuda) -> set[Hashable]:
    """The working memory that an engine has run in so far: as many as there were calls at the same time."""
    return {memory for memory in cuda.runs if memory[0] == "scratch"}


@contextmanager
def call_under_way(engine: TensorRTEngine, batch: Tensor) -> Iterator[None]:
    """Inside, another thread is in the middle of a call: its run is issued, its results are not copied yet."""
    issued, go_on = threading.Event(), threading.Event()

    class Stopping(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.clone.default:
                issued.set()
                assert go_on.wait(20)
            return func(*args, **(kwargs or {}))

    def call() -> tuple[Tensor, ...]:
        with Stopping():
            return engine(batch)

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(call)
        try:
            assert issued.wait(20)
            yield
        finally:
            go_on.set()
        assert_same(results.result(), reference(batch))


# Results


@pytest.mark.parametrize("outputs", [LOGITS, LOGITS[::-1], ("sizes",)], ids=str)
def test_outputs_by_name_in_the_order_asked_for(outputs, trt):
    engine = engine_of(trt, outputs)
    for B, size in [(3, 16), (1, 16), (9, 24), (2, 16), (12, 32), (3, 16)]:
        batch = images(B, 3, size, size, seed=B)
        results = engine(batch)
        assert_same(results, reference(batch, outputs))
        for tensor in results:
            assert (tensor.dtype, tensor.device, len(tensor)) == (torch.float32, CPU, B)
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_forms_of_images(make, trt):
    batch = images(3, 3, 16, 16).bfloat16().float()
    engine = engine_of(trt)
    assert equal(engine(make(batch)), engine(batch))


def test_results_are_the_callers_own(trt):
    engine = engine_of(trt)
    batches = [images(2, 3, 16, 16, seed=seed) for seed in range(3)]
    results = [engine(batch) for batch in batches]
    kept = [[tensor.clone() for tensor in result] for result in results]
    for result in results[1:]:
        for tensor in result:
            tensor.fill_(torch.nan)
    assert equal(results[0], kept[0])
    assert equal(engine(batches[1]), kept[1])


def test_what_earlier_calls_left_in_spare_rows_does_not_matter(trt):
    engine, batch = engine_of(trt), images(5, 3, 24, 24)
    expected = engine(batch)
    assert all(tensor.isnan().all() for tensor in engine(torch.full((8, 3, 24, 24), torch.nan)))
    assert equal(engine(batch), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("first_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(first_mode, mode, trt):
    engine, batch = engine_of(trt), images(2, 3, 16, 16)
    with first_mode():
        expected = engine(batch)
    with mode():
        results = engine(batch)
        assert all(tensor.is_inference() == torch.is_inference_mode_enabled() for tensor in results)
    assert equal(results, expected)
    assert not any(tensor.requires_grad for tensor in engine(batch.requires_grad_()))


# Shapes


def test_one_context_for_each_shape(trt):
    """Shapes and addresses are set once: a graph is of one shape, and TensorRT-RTX's own too."""
    engine = engine_of(trt)
    for B, size in [(3, 16), (4, 16), (5, 16), (8, 24), (7, 24), (3, 16), (12, 32)]:
        batch = images(B, 3, size, size)
        assert_same(engine(batch), reference(batch))
    assert len(trt.contexts) == 4
    assert trt.moved == 0
    assert {shape[0] for shape, _ in trt.runs} == {4, 8, 12}


def prepared(contexts) -> set[tuple[int, ...]]:
    """The profile's index, rows, height and width that each context is set to."""
    return {
        (context.engine.fields["profiles"].index(context.profile), context.shape[0], *context.shape[2:])
        for context in contexts
    }


def test_first_profile_that_admits_the_batch(trt, contexts):
    engine = engine_of(trt)
    known: set[tuple[int, ...]] = set()
    for B, height, width, key in [
        (1, 16, 16, (0, 1, 16, 16)),
        (3, 16, 16, (0, 4, 16, 16)),
        (4, 16, 16, (0, 4, 16, 16)),
        (5, 16, 16, (1, 8, 16, 16)),
        (11, 16, 16, (1, 12, 16, 16)),
        (2, 24, 32, (1, 2, 24, 32)),
    ]:
        engine(images(B, 3, height, width))
        known.add(key)
        assert prepared(contexts) == known
    assert len(contexts) == 5


def test_bucket_does_not_exceed_the_profile(trt, contexts):
    engine = engine_of(trt, profiles=[[(2, 3, 16, 16), (3, 3, 16, 16), (7, 3, 16, 16)]])
    engine(images(5, 3, 16, 16))
    assert prepared(contexts) == {(0, 7, 16, 16)}
    assert_same(engine(images(7, 3, 16, 16)), reference(images(7, 3, 16, 16)))


@pytest.mark.parametrize("shape", [(13, 3, 16, 16), (1, 3, 8, 16), (1, 3, 16, 40), (5, 3, 40, 40)])
def test_shape_outside_all_profiles(shape, trt):
    engine = engine_of(trt)
    with pytest.raises(ValueError, match="do not fit the engine, which takes batch 1 to 4, height 16") as caught:
        engine(images(*shape))
    assert "batch 1 to 12, height 16 to 32" in str(caught.value)
    assert not trt.runs


def test_least_recently_used_shape_is_dropped(trt, cuda, monkeypatch):
    monkeypatch.setattr(engine_module, "SHAPES_KEPT", 2)
    engine = engine_of(trt)
    batches = [images(B, 3, 16, 16) for B in (1, 2, 4)]
    for batch in [*batches[:2], batches[0]]:
        engine(batch)
    cuda.log.clear()
    engine(batches[2])  # drops that of two
    assert cuda.log[1] == ("wait on the host", None)  # after the wait for the last run: it may still be going on
    made = len(trt.contexts)
    assert_same(engine(batches[0]), reference(batches[0]))
    assert len(trt.contexts) == made
    assert_same(engine(batches[1]), reference(batches[1]))
    assert len(trt.contexts) == made + 1
    gc.collect()
    assert trt.freed_early == 0
    assert cuda.graphs.total() == (0 if trt.rtx else 2)


# Streams and graphs


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


def test_rtx_runs_on_a_stream_of_the_lane_that_the_callers_waits_for(rtx, cuda):
    """On the default stream TensorRT would wait on the host, and could record nothing."""
    engine, batch = engine_of(rtx), images(2, 3, 16, 16)
    engine(batch)
    mine = torch.cuda.Stream()
    cuda.log.clear()
    with torch.cuda.stream(mine):
        engine(batch)
    assert cuda.log == [("wait", mine), ("done", mine)]
    streams = {stream for _, stream in rtx.runs}
    assert len(streams) == 1
    assert mine not in streams
    (memory,) = lanes(cuda)
    assert mine.after[memory] == len(rtx.runs) == 4
    assert not cuda.streams("graph")


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


def test_rtx_never_runs_on_streams_that_record(rtx, cuda):
    for _ in range(40):  # more than PyTorch has streams
        engine_of(rtx)(images(1, 3, 16, 16))
    assert not {stream for _, stream in rtx.runs} & {torch.cuda.Stream(priority=-1) for _ in range(100)}


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


# Errors


@pytest.mark.parametrize("content", [b"", b"garbage", plan()[:-5]], ids=["empty", "garbage", "cut"])
def test_plan_that_cannot_be_loaded(content, trt):
    with pytest.raises(EngineError) as caught:
        TensorRTEngine(content, trt.flavor, LOGITS, CPU)
    assert f"{trt.flavor} cannot load the plan of {len(content)} bytes on cpu; build it again" in str(caught.value)
    assert "header.magicTag == kEXPECTED_MAGIC_TAG" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_load_that_raises(error, trt, monkeypatch):
    def fail(*_):
        raise error("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt.module, "Runtime", fail)
    with pytest.raises(EngineError, match="factory function returned nullptr"):
        engine_of(trt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": ["conv_logits"]}, "returns conv_logits; it should read images and return conv_logits, trans_log"),
        ({"inputs": ["images", "masks"]}, "reads images, masks and returns"),
        ({"inputs": ["x"]}, "the plan reads x and"),
        ({"dtype": "HALF"}, "the plan's sizes are DataType.HALF, not fp32"),
    ],
)
def test_plan_of_another_graph(changes, message, trt):
    with pytest.raises(EngineError, match=message):
        engine_of(trt, **changes)


class WorkingMemory(TorchDispatchMode):
    """Counts how often it is made, in this thread."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made += "empty" in str(func) and result.dtype == torch.uint8 and result.nbytes == SCRATCH
        return result


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("context", "made no execution context"),
        ("profile", "took no profile 0"),
        ("infer", r"does not know the shape of images for images of shape \(1, 3, 16, 16\)"),
        ("address", "took no address for images"),
        ("execute", "did not run"),
    ],
)
def test_what_tensorrt_refuses_is_said_with_its_log(call, message, trt, cuda, contexts):
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    trt.refuse[call] = "Error Code 7: the reason"
    memory = WorkingMemory()
    with memory, pytest.raises(EngineError, match=f"(?s){trt.flavor} {message}.*Error Code 7: the reason"):
        engine(batch)
    assert cuda.log[-1][0] in ("done", "wait on the host")
    gc.collect()
    assert not contexts  # one that was half prepared is not kept for the next call
    trt.refuse.clear()
    with memory, torch.cuda.stream(torch.cuda.Stream()):
        assert_same(engine(batch), reference(batch))
    assert memory.made == 1  # the failed call gave it back
    gc.collect()
    assert trt.freed_early == 0


@pytest.mark.parametrize("call", ["config", "set cache"])
def test_what_rtx_refuses(call, rtx):
    engine = engine_of(rtx)
    rtx.refuse[call] = "Error Code 7: the reason"
    with pytest.raises(EngineError, match="Error Code 7: the reason"):
        engine(images(1, 3, 16, 16))


def test_known_shape_that_fails_later(rtx):
    engine, batch = engine_of(rtx), images(1, 3, 16, 16)
    expected = engine(batch)
    rtx.refuse["execute"] = "Cuda Runtime (an illegal memory access)"
    with pytest.raises(EngineError, match="did not run"):
        engine(batch)
    rtx.refuse.clear()
    assert equal(engine(batch), expected)
    assert len(rtx.contexts) == 1


@pytest.mark.parametrize("how", ["refused", "spoilt"])
def test_recording_that_fails(how, cuda):
    """A run that cannot be recorded is run as it is."""
    trt = TensorRT(cuda)
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    if how == "refused":
        trt.refuse["record"] = "operation not permitted when stream is capturing"
    cuda.spoilt = how == "spoilt"
    with pytest.warns(UserWarning, match=r"(?s)cannot be recorded as a CUDA graph.* runs without one"):
        assert_same(engine(batch), reference(batch))
    trt.refuse.clear()
    assert not torch.cuda.is_current_stream_capturing()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(engine(batch), reference(batch))
    gc.collect()
    assert cuda.graphs.total() == (how == "spoilt")  # PyTorch never frees what was spoilt
    assert trt.freed_early == 0


def test_other_errors_pass_as_they_are(trt):
    engine = engine_of(trt)
    with pytest.raises(RuntimeError, match="must match the size"):
        engine(images(1, 2, 16, 16))  # the caller's own check would not let this through
    assert_same(engine(images(1, 3, 16, 16)), reference(images(1, 3, 16, 16)))


# Memory


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


# Engines that are no longer used


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


# Kernels that TensorRT-RTX compiled


def kernels(folder: Path) -> list[str]:
    return json.loads((folder / "runtime.cache").read_bytes())["kernels"]


def test_kernels_are_kept_after_the_first_call_of_a_shape(rtx, tmp_path):
    engine = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    assert not (tmp_path / "runtime.cache").exists()
    engine(images(1, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)"]
    engine(images(2, 3, 16, 16))
    assert len(kernels(tmp_path)) == 2
    written = (tmp_path / "runtime.cache").stat().st_mtime_ns
    with call_under_way(engine, images(2, 3, 16, 16)):
        engine(images(2, 3, 16, 16))  # a new context, with nothing to compile
    assert len(rtx.contexts) == 3
    engine(images(1, 3, 16, 16))
    assert (tmp_path / "runtime.cache").stat().st_mtime_ns == written


def test_next_program_starts_with_the_kernels(rtx, tmp_path):
    engine_of(rtx, cache=RuntimeCacheFile(tmp_path))(images(1, 3, 16, 16))
    written = (tmp_path / "runtime.cache").stat().st_mtime_ns
    second = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    second(images(1, 3, 16, 16))
    assert (tmp_path / "runtime.cache").stat().st_mtime_ns == written
    third = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    third(images(2, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)", "(2, 3, 16, 16)"]  # also the one that it never ran


def test_kernels_for_another_gpu_are_replaced(rtx, tmp_path):
    file = RuntimeCacheFile(tmp_path)
    file.write(json.dumps({"gpu": "elsewhere", "kernels": ["x"]}).encode())
    engine_of(rtx, cache=file)(images(1, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)"]


def test_lanes_share_their_kernels_without_a_file_too(rtx, contexts):
    engine, batch = engine_of(rtx), images(1, 3, 16, 16)
    with call_under_way(engine, batch):
        engine(batch)
    one, two = contexts
    assert one.cache is two.cache is not None


def test_writes_are_bounded(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "CACHE_WRITES", 2)
    engine = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    for B in (1, 2, 4):
        engine(images(B, 3, 16, 16))
    assert len(kernels(tmp_path)) == 2


def test_tensorrt_needs_no_such_file(cuda, tmp_path):
    engine_of(TensorRT(cuda), cache=RuntimeCacheFile(tmp_path))(images(1, 3, 16, 16))
    assert not list(tmp_path.iterdir())


# Real TensorRT-RTX without a GPU: nothing can be loaded, and nothing may crash

NEEDS_RTX = pytest.mark.skipif(
    not (find_spec("tensorrt_rtx") or find_spec("tensorrt_rtx_bindings")), reason="needs TensorRT-RTX"
)
LOAD = """
import sys
import torch
from fake_cuda import fake_cuda
from conformer_fast.engines.tensorrt.flavors import EngineError, get_flavor
from conformer_fast.engines.tensorrt.engine import TensorRTEngine

flavor = get_flavor("tensorrt-rtx")
good = open(sys.argv[1], "rb").read()
middle = len(good) // 2
plans = {
    "good": good,
    "cut": good[:middle],
    "last byte missing": good[:-1],
    "longer": good + bytes(8),
    "header only": good[:64],
    "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
    "header flipped": bytes([good[0] ^ 1]) + good[1:],
    "zeroed": good[:middle] + bytes(len(good) - middle),
    "garbage": bytes(range(256)) * 4000,
    "zeros": bytes(100_000),
    "one byte": b"x",
    "empty": b"",
}
with fake_cuda():
    for name, plan in plans.items():
        try:
            TensorRTEngine(plan, flavor, ["conv_logits"], torch.device("cpu"))
        except EngineError as error:
            print(name, "|", str(error).replace(chr(10), " "))
"""


@pytest.fixture(scope="session")
def small_plan(small_config, tmp_path_factory) -> Path:
    """The small model in fp32, built without a GPU."""
    import lookalikes

    from conformer_fast import Conformer
    from conformer_fast.engines.onnx.export import onnx_from_model
    from conformer_fast.engines.tensorrt.plan import engine_from_onnx
    from conformer_fast.inference.lower import lower

    torch.manual_seed(0)
    model = lower(lookalikes.fill(Conformer(small_config)).eval())
    profile = Shapes((1, 2, 8), (32, 32, 64), (32, 32, 64))
    onnx = onnx_from_model(model).SerializeToString()
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    path.write_bytes(engine_from_onnx(onnx, [profile], get_flavor("tensorrt-rtx"), ["sm86"], "fp32"))
    return path


@NEEDS_RTX
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may load a plan that is only flipped")
def test_rtx_without_a_gpu_refuses_every_plan_and_says_why(small_plan):
    """In a process of its own: a crash is this test's failure."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, small_plan],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert len(said) == 12
    for name, message in said.items():
        assert "the log of TensorRT ends with" in message, name
    for name in ("cut", "last byte missing", "longer"):
        assert "plan.header.size == blobSize" in said[name]
    for name in ("header flipped", "garbage", "zeros"):
        assert "header.magicTag == kEXPECTED_MAGIC_TAG" in said[name]
    assert "empty memory buffer" in said["empty"]
    assert "CUDA" in said["good"]
