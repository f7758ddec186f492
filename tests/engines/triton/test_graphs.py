"""The CUDA executor: its own code, on a pretended torch.cuda; engines/triton/test_graphs_gpu.py needs a real one."""

import gc
import itertools
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import lookalikes
import pytest
import torch
from executor_samples import FORMS, TINY, assert_same, equal, images, inference_model
from fake_cuda import FREE, TOTAL, OutOfMemory, fake_cuda
from torch import Tensor, nn

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.engines.cuda import GPUMemoryError, bucket
from conformer_fast.engines.triton import graphs
from conformer_fast.engines.triton.graphs import CUDAGraphEngine, shared
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.model.precision import DTYPES, tf32_as_asked

CPU = torch.device("cpu")

# Buckets


def test_buckets():
    assert [bucket(batch) for batch in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, 10, 10, 12, 12]
    sizes = [1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]
    assert sorted({bucket(batch) for batch in range(1, 129)}) == sizes
    assert bucket(1000) == 1024


def test_bucket_is_the_next_one_and_wastes_little():
    sizes = sorted({bucket(batch) for batch in range(1, 3000)})
    for batch in range(1, 2000):
        rows = bucket(batch)
        assert rows == min(size for size in sizes if size >= batch)
        assert bucket(rows) == rows
        assert rows - batch < (rows / 2 if batch <= 8 else rows / 5)


# The engine's own code, on the CPU


@pytest.fixture
def cuda():
    with fake_cuda() as pretended:
        yield pretended


@pytest.fixture
def model() -> InferenceConformer:
    return inference_model()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_batches_of_any_size(dtype, cuda):
    model = inference_model(dtype=dtype)
    engine = CUDAGraphEngine(model)
    for B in (3, 1, 2, 4, 5, 8, 9, 11):
        batch = images(B, 3, 32, 48, seed=B)
        results = engine(batch)
        assert_same(results, model(batch), 1e-5 if dtype == torch.float32 else 1e-2)
        for tensor in results:
            assert (tensor.dtype, tensor.device, len(tensor)) == (torch.float32, CPU, B)
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes  # not part of a larger one


def test_a_shape_is_tuned_once_before_it_is_recorded(cuda, model):
    tuned = []

    def tune(given, *key):
        assert given is model
        assert not cuda.streams("graph")[len(tuned) :]
        tuned.append(key)

    engine = CUDAGraphEngine(model, tune)
    for B, size in [(3, 32), (4, 32), (5, 32), (3, 32), (3, 48)]:
        engine(images(B, 3, size, size))
    assert tuned == [(4, 32, 32), (8, 32, 32), (4, 48, 48)]


def test_maps_and_tokens(cuda):
    model = lower(lookalikes.fill(Conformer(TINY, features_only=True)).eval())
    batch = images(3, 3, 33, 47)
    results = CUDAGraphEngine(model)(batch)
    assert_same(results, model(batch))
    assert all(tensor.is_contiguous() for tensor in results)


def test_one_graph_for_each_bucket_and_size(cuda, model):
    engine = CUDAGraphEngine(model)
    recorded = []
    for B, H, W in [(3, 32, 32), (4, 32, 32), (5, 32, 32), (7, 32, 32), (4, 32, 48), (4, 48, 32), (3, 48, 32)]:
        engine(images(B, 3, H, W))
        recorded.append(len(cuda.streams("graph")))
    assert recorded == [1, 1, 2, 2, 3, 4, 4]


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


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_forms_of_images(make, cuda, model):
    batch = images(3, 3, 32, 48).bfloat16().float()  # values that every dtype here has
    engine = CUDAGraphEngine(model)
    assert equal(engine(make(batch)), engine(batch))


def test_what_earlier_calls_left_in_spare_rows_does_not_matter(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(5, 3, 32, 32)
    expected = engine(batch)
    spoilt = engine(torch.full((8, 3, 32, 32), torch.nan))
    assert all(tensor.isnan().all() for tensor in spoilt)
    assert equal(engine(batch), expected)


def test_results_are_the_callers_own(cuda, model):
    engine = CUDAGraphEngine(model)
    batches = [images(2, 3, 32, 32, seed=seed) for seed in range(3)]
    results = [engine(batch) for batch in batches]
    kept = [[tensor.clone() for tensor in result] for result in results]
    for result in results[1:]:
        for tensor in result:
            tensor.fill_(torch.nan)
    assert equal(results[0], kept[0])
    assert equal(engine(batches[1]), kept[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("first_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(first_mode, mode, cuda, model):
    """Whatever mode a graph is recorded in, its results may be used in any other."""
    engine, batch = CUDAGraphEngine(model), images(2, 3, 32, 32)
    with first_mode():
        expected = engine(batch)
    with mode():
        results = engine(batch)
        assert all(tensor.is_inference() == torch.is_inference_mode_enabled() for tensor in results)
    assert equal(results, expected)
    scale = torch.ones(7, requires_grad=True)
    (engine(batch)[0] * scale).sum().backward()  # as a head that trains on top would
    assert scale.grad is not None
    trained = batch.clone().requires_grad_()
    assert not any(tensor.requires_grad for tensor in engine(trained))
    kept = weakref.ref(trained)
    del trained
    assert kept() is None  # no graph of gradients holds it


def test_least_recently_used_graph_is_dropped(cuda, model, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS_KEPT", 2)
    engine = CUDAGraphEngine(model)
    one, two, four = (images(B, 3, 32, 32) for B in (1, 2, 4))
    expected = [engine(batch) for batch in (one, two)]
    engine(one)
    engine(four)  # drops the graph of two
    assert cuda.graphs.total() == 2
    assert cuda.log[-4][0] == "wait on the host"  # what is dropped may still be running
    assert [kind for kind, _ in cuda.log[-3:]] == ["wait", "replay", "done"]
    recorded = [len(cuda.streams("graph"))]
    for batch, results in ((one, expected[0]), (two, expected[1]), (one, expected[0])):
        assert equal(engine(batch), results)
        recorded.append(len(cuda.streams("graph")))
    assert recorded == [3, 3, 4, 4]


def test_all_models_of_a_gpu_share_one_pool(cuda):
    engines = [CUDAGraphEngine(inference_model()) for _ in range(3)]
    for B, engine in itertools.product((1, 3, 9), engines):
        engine(images(B, 3, 32, 32))
    assert list(cuda.graphs.values()) == [9]


def test_new_pool_after_the_last_graph_is_gone(cuda, model):
    """PyTorch fails an internal assertion when a pool is used again that has lost its last graph."""
    for _ in range(3):
        engine = CUDAGraphEngine(model)
        engine(images(1, 3, 32, 32))
        del engine
    assert not cuda.graphs
    assert len(cuda.dead_pools) == 3


def test_replays_on_other_streams_come_after_each_other(cuda):
    """The pretended CUDA refuses two replays that nothing orders, as they would share their memory at once."""
    engines = [CUDAGraphEngine(inference_model()) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    expected = [engine(images(1, 3, 32, 32)) for engine in engines]
    for stream, index in itertools.product(streams, range(2)):
        with torch.cuda.stream(stream):
            assert equal(engines[index](images(1, 3, 32, 32)), expected[index])
    assert cuda.replays == 8


def test_order_is_kept_after_an_error(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    expected = engine(batch)
    with pytest.raises(RuntimeError, match="must match the size"):
        engine(images(1, 2, 32, 32))  # compile's own check would not let this through
    assert cuda.log[-1][0] == "done"
    with torch.cuda.stream(torch.cuda.Stream()):
        assert equal(engine(batch), expected)


def test_branches_run_beside_each_other_in_small_batches(cuda, model):
    engine = CUDAGraphEngine(model)
    for B, beside in [(1, True), (8, True), (9, False)]:
        cuda.log.clear()
        engine(images(B, 3, 32, 32))
        assert bool(cuda.streams("beside")) == beside
    assert_same(engine(images(8, 3, 32, 32)), model(images(8, 3, 32, 32)))


class Faulty(nn.Module):
    """The model with an error in it, the `runs`-th time it runs: 1 to prepare, 2 to be recorded."""

    def __init__(self, model: InferenceConformer, runs: int) -> None:
        super().__init__()
        self.model, self.runs = model, runs
        self.config, self.stem = model.config, model.stem

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.runs -= 1
        hook = self.model.conv_trans_2.cnn_block.conv3.register_forward_pre_hook(self.fail)  # beside the transformer
        try:
            return self.model(batch)
        finally:
            hook.remove()

    def fail(self, *_) -> None:
        if self.runs == 0:
            raise RuntimeError("a kernel does not compile")


@pytest.mark.parametrize("runs", [1, 2], ids=["preparing", "recording"])
def test_other_errors_pass_as_they_are(runs, cuda, model):
    engine, batch = CUDAGraphEngine(Faulty(model, runs)), images(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"^a kernel does not compile$"):  # not that a branch was left open
        engine(batch)
    assert_same(engine(batch), model(batch))
    gc.collect()
    assert cuda.graphs.total() == 1


def test_failed_recording_takes_no_memory_from_others(cuda, model):
    good = CUDAGraphEngine(model)
    expected = good(images(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match="does not compile"):
        CUDAGraphEngine(Faulty(model, 2))(images(1, 3, 32, 32))
    gc.collect()
    assert cuda.graphs.total() == 1
    another = CUDAGraphEngine(inference_model())
    assert equal(another(images(1, 3, 32, 32)), expected)
    assert equal(good(images(1, 3, 32, 32)), expected)
    del good, another
    assert not cuda.graphs


def test_pool_of_a_spoilt_recording_is_not_used_again(cuda, model):
    engine = CUDAGraphEngine(model)
    expected = engine(images(1, 3, 32, 32))
    cuda.spoilt = True
    with pytest.raises(RuntimeError, match="another error spoilt the recording"):
        engine(images(2, 3, 32, 32))
    assert len(engine(images(2, 3, 32, 32))[0]) == 2
    assert equal(engine(images(1, 3, 32, 32)), expected)
    assert len(cuda.graphs) == 2


@pytest.mark.parametrize(("dtype", "tf32"), [(torch.float32, False), (torch.float16, True)], ids=str)
def test_what_a_recording_runs_under(dtype, tf32, cuda):
    """Nothing of the caller's: his autocast would change the precision that was asked for."""
    seen, streams = [], []

    class Looking(Faulty):
        def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
            conv_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), conv_tf32))
            streams.append(torch.cuda.current_stream())
            return self.model(batch)

    with torch.autocast("cpu"), torch.enable_grad():
        CUDAGraphEngine(Looking(inference_model(dtype=dtype), 0))(images(1, 3, 32, 32))
    assert seen == [(False, True, tf32)] * 2  # to prepare, to be recorded
    assert streams == [torch.cuda.current_stream(), *cuda.streams("graph")]
    assert streams[0] is not streams[1]
    assert [kind for kind, _ in cuda.log[:3]] == ["wait on the host", "wait on the host", "graph"]  # before each


def test_call_while_recording_is_refused_in_words(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    engine(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, (0, 99), torch.cuda.Stream(), capture_error_mode="thread_local"):
        for size in (32, 48):
            with pytest.raises(RuntimeError, match=r"is a CUDA graph already; call it outside of torch\.cuda\.graph"):
                engine(images(1, 3, size, size))
    engine(batch)


# Threads


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


# Engines that are no longer used


def test_dropped_engine_frees_its_graphs_and_weights_once_they_are_not_read(cuda):
    model = inference_model()
    weight = weakref.ref(model.stem.weight)
    outputs = []
    model.register_forward_hook(lambda module, inputs, results: outputs.extend(map(weakref.ref, results)))
    engine = CUDAGraphEngine(model)
    for B in (1, 2):
        engine(images(B, 3, 32, 32))
    assert sum(output() is not None for output in outputs) == 4  # the two that each graph writes
    cuda.log.clear()
    del model, engine
    assert not cuda.graphs
    assert weight() is None
    assert not any(output() is not None for output in outputs)
    assert cuda.log[0] == ("wait on the host", None)


def test_engine_dropped_in_the_middle_of_a_turn_is_freed_after_it(cuda, model):
    its_model = inference_model()
    weights = weakref.ref(its_model)
    doomed, other = CUDAGraphEngine(its_model), CUDAGraphEngine(model)
    for engine in (doomed, other):
        engine(images(1, 3, 32, 32))
    del its_model, engine
    with shared(CPU).turn():
        del doomed  # where Python's collector may run
        assert cuda.graphs.total() == 2
        assert weights() is not None  # the GPU may still read them
    assert cuda.graphs.total() == 1
    assert weights() is None
    other(images(1, 3, 32, 32))


def test_engine_dropped_while_a_graph_is_recorded_is_freed_after_it(cuda, model):
    """Freeing waits for the GPU, which would spoil the recording."""
    doomed = [CUDAGraphEngine(inference_model())]
    doomed[0](images(1, 3, 32, 32))

    class Dropping(Faulty):
        def fail(self, *_) -> None:
            if self.runs == 0:
                doomed.clear()
                assert cuda.graphs.total() == 2  # the doomed one's, and the one being recorded

    engine = CUDAGraphEngine(Dropping(model, 2))
    assert_same(engine(images(1, 3, 32, 32)), model(images(1, 3, 32, 32)))
    assert not doomed
    assert cuda.graphs.total() == 1


def test_engine_dropped_while_the_caller_records_is_freed_by_the_next(cuda, model):
    its_model = inference_model()
    weights = weakref.ref(its_model)
    doomed = CUDAGraphEngine(its_model)
    doomed(images(1, 3, 32, 32))
    del its_model
    with torch.cuda.graph(torch.cuda.CUDAGraph(), (0, 99), torch.cuda.Stream(), capture_error_mode="thread_local"):
        del doomed
        assert weights() is not None
    CUDAGraphEngine(model)(images(1, 3, 32, 32))
    assert weights() is None
    gc.collect()
    assert not cuda.graphs


def test_engine_dropped_by_another_thread(cuda, model):
    engines = [CUDAGraphEngine(model) for _ in range(8)]
    for engine in engines:
        engine(images(1, 3, 32, 32))
    del engine
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: engines.pop(), range(8)))
    with shared(CPU).turn():
        pass
    assert not cuda.graphs


def test_thousand_engines_leave_nothing(cuda):
    model = inference_model()

    def cycle() -> None:
        engine = CUDAGraphEngine(model.with_outputs(["1.tokens"]))
        engine(images(1, 3, 16, 16))

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    def thousand() -> int:
        for _ in range(1000):
            cycle()
            cuda.log.clear()
            cuda.dead_pools.clear()
        return objects()

    cycle()
    before = objects()
    after = thousand()
    assert after - before < 100
    assert not cuda.graphs


# Memory


def test_out_of_memory_wherever_it_happens(cuda):
    """Each operator in turn, of the run that prepares and of the one that is recorded, finds no memory."""
    model = inference_model()
    batch, small = images(8, 3, 32, 32), images(1, 3, 32, 32)
    engine = CUDAGraphEngine(model)
    expected = engine(small)
    for count in itertools.count(step=3):
        with OutOfMemory(count), pytest.raises(torch.OutOfMemoryError) as caught:
            engine(batch)
        if cuda.graphs.total() == 2:  # it is the replay that fails from here on
            break
        assert isinstance(caught.value, GPUMemoryError)
        assert caught.value.__context__ is None  # which would keep alive what the failed run made
        assert equal(engine(small), expected)
        gc.collect()
        assert cuda.graphs.total() == 1
    assert count > 40
    assert_same(engine(batch), model(batch))


def test_out_of_memory_says_what_does_not_fit_and_what_is_free(cuda, model):
    engine = CUDAGraphEngine(model)
    with OutOfMemory(10), pytest.raises(torch.OutOfMemoryError) as caught:
        engine(images(5, 3, 48, 32))
    error = caught.value
    assert isinstance(error, GPUMemoryError)
    assert (error.free, error.total) == (FREE, TOTAL)
    assert str(error) == (
        f"cpu has no room for the activations of 8 48x32 images in torch.float32: {FREE:,} bytes are free of "
        f"{TOTAL:,}; run smaller batches or free memory"
    )


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_out_of_memory_by_other_names(message, cuda, model):
    engine = CUDAGraphEngine(model)
    with OutOfMemory(20, lambda: RuntimeError(message)), pytest.raises(GPUMemoryError):
        engine(images(1, 3, 32, 32))
    engine(images(1, 3, 32, 32))


# TF32


def cudnn_state() -> tuple:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.enabled, cudnn.benchmark, cudnn.deterministic


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "dtype", "inside"),
    [
        ("highest", torch.float32, False),
        ("high", torch.float32, True),
        ("medium", torch.float32, True),
        ("highest", torch.float16, True),  # where it changes nothing
        ("highest", torch.float64, True),
    ],
)
def test_tf32_only_as_asked(precision, dtype, inside, matmul_precision):
    matmul_precision(precision)
    before = cudnn_state()
    assert before[0] == "tf32"  # PyTorch's default
    with tf32_as_asked(dtype):
        state = cudnn_state()
        assert (state[0] == "tf32") == inside
        assert state[1:] == before[1:]
    assert cudnn_state() == before


def test_tf32_allowed_by_pytorchs_newer_setting(matmul_precision):
    """torch.get_float32_matmul_precision raises then."""
    matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for dtype in (torch.float32, torch.float16):
        with tf32_as_asked(dtype):
            assert cudnn_state()[0] == "tf32"


def test_tf32_turned_off_by_the_user_stays_so(matmul_precision):
    matmul_precision("highest")
    conv = torch.backends.cudnn.conv
    conv.fp32_precision = "ieee"
    try:
        with tf32_as_asked(torch.float32):
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = "tf32"


# compile()


def test_compile_takes_the_gpu_of_the_module(cuda, monkeypatch):
    entered = []

    class OnGPU(nn.Module):
        def parameters(self, recurse=True):
            yield nn.Parameter(torch.zeros(1))
            yield type("Parameter", (), {"is_cuda": True, "device": torch.device("cuda:1")})

    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or torch.no_grad())
    with pytest.raises(cf.CheckpointError):  # it is no Conformer, but its place was looked up
        cf.compile(OnGPU().eval())
    assert entered == [torch.device("cuda:1")]


def test_compile_on_the_gpu(cuda, small_model):
    fast = cf.compile(small_model, backend="triton")
    assert (fast.settings.precision, fast.settings.device, fast.device) == ("fp16", "cpu", CPU)
    assert fast.reason == "triton fp16: the fastest precision of the GPU"
    batch = images(3, 3, 40, 48)
    with torch.no_grad():
        assert_same(fast(batch), small_model(batch), 1e-2)
    assert fast.verify(batch).within
    assert not equal(fast(batch), cf.compile(small_model, backend="triton", precision="fp32")(batch))
