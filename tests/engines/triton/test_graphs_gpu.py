"""The CUDA executor on a real GPU; engines/triton/test_graphs*.py run its code on a pretended one."""

import copy
import gc
import random
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import lookalikes
import pytest
import torch
from executor_samples import FORMS, TINY, assert_same, equal, images, inference_model

import conformer_fast as cf
from conformer_fast import Conformer, ConformerConfig
from conformer_fast.engines.cuda import GPUMemoryError
from conformer_fast.engines.registry import make
from conformer_fast.engines.triton import graphs
from conformer_fast.model.distance import relative_error
from conformer_fast.model.precision import DTYPES

MODELS, WARM_MODELS = 1000, 20  # that are made and dropped, after some others
CALLS, TURNS = 20, 48  # of each thread; of streams
SIDE = 224  # of larger images
POOL_BATCH, POOL_SIDE = 64, 128  # whose activations take more memory than the allocator's own pieces
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(precision: str = "fp16", config: ConformerConfig = TINY, **options) -> cf.FastConformer:
    model = lookalikes.fill(Conformer(config, **options)).eval()
    return cf.compile(model, backend="triton", precision=precision)


@pytest.mark.slow  # it compiles every kernel in three precisions
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("size", [(1, 32, 32), (3, 40, 48), (9, 64, 33)], ids=str)
def test_gpu_every_tensor_inside_is_within_its_bound(precision, size, small_config):
    B, H, W = size
    report = on_gpu(precision, small_config).verify(images(B, 3, H, W, device="cuda"))
    assert report.within, str(report)
    assert all(row.within for row in report.blocks), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_gpu_tiny_is_within_its_bound(precision, batch):
    report = on_gpu(precision, cf.VARIANTS["tiny-p16"]).verify(images(batch, 3, SIDE, SIDE, device="cuda"))
    assert report.within, str(report)
    assert all(row.within for row in report.blocks), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
def test_gpu_features(precision, small_config):
    for module in (
        Conformer(small_config, features_only=True),
        lookalikes.MMPretrainBackbone(small_config, [2, 3]),
        lookalikes.MMDetectionBackbone(small_config),
    ):
        lookalikes.fill(module)
        module.eval()
        fast = cf.compile(module.cuda(), backend="triton", precision=precision)
        batch = images(2, 3, 48, 40, device="cuda")
        report = fast.verify(batch)
        assert report.within, str(report)
        assert all(tensor.is_contiguous() and tensor.is_cuda for tensor in fast.run(batch))


def test_gpu_is_what_auto_takes(small_model):
    fast = cf.compile(small_model)
    assert (fast.settings.backend.name, fast.settings.precision) == ("triton", "fp16")
    assert fast.device == torch.device("cuda", torch.cuda.current_device())
    with pytest.raises(ValueError, match=r"compiled for cuda:\d, the images are on cpu; pass images\.to\('cuda:\d'\)"):
        fast(images(1, 3, 32, 32))


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_gpu_forms_of_images(make):
    fast = on_gpu()
    batch = images(3, 3, 32, 48, device="cuda").bfloat16().float()
    assert equal(fast(make(batch)), fast(batch))


def test_gpu_pixels():
    from conformer_fast.model.recipe import MEAN, STD

    pixels = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    fast = on_gpu("fp32")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normalized = (pixels.float() / 255 - mean) / std
    assert torch.equal(fast.as_input(pixels.cuda()).cpu(), normalized)
    assert equal(fast(pixels.cuda()), fast(normalized.cuda()))


def test_gpu_replay_neither_waits_nor_allocates_more_than_results():
    fast = on_gpu()
    batch = images(4, 3, 64, 64, device="cuda")
    fast(batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = fast(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == len(results)


def test_gpu_callers_stream():
    """The images are made late on a stream of the caller's; a replay that did not wait for them would miss them."""
    fast, side = on_gpu(), torch.cuda.Stream()
    batch = images(2, 3, 32, 32, device="cuda")
    expected = fast(batch)
    torch.cuda.synchronize()
    for _ in range(3):
        with torch.cuda.stream(side):
            late = torch.zeros_like(batch)
            torch.cuda._sleep(50_000_000)
            late.copy_(batch)
            results = fast(late)
            del late
            copies = [tensor.clone() for tensor in results]
        side.synchronize()
        assert equal(copies, expected)


def test_gpu_replays_on_different_streams_do_not_overlap():
    """Two models, which share their memory, in turn on many streams that nothing else orders."""
    models = [on_gpu(), on_gpu(config=ConformerConfig(embed_dim=64, num_heads=1, depth=3, num_classes=5))]
    batches = [images(B, 3, 64, 64, device="cuda") for B in (1, 4, 16)]
    expected = [[fast(batch) for batch in batches] for fast in models]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(8)]
    results = []
    for turn in range(TURNS):
        with torch.cuda.stream(streams[turn % 8]):
            results.append(models[turn % 2](batches[turn % 3]))
    torch.cuda.synchronize()
    for turn, result in enumerate(results):
        assert_same(result, expected[turn % 2][turn % 3], 1e-6)


def test_gpu_many_threads_with_a_stream_each():
    fast = on_gpu()
    batches = [images(B, 3, *size, seed=B, device="cuda") for B in (1, 2, 3, 5) for size in ((32, 32), (40, 24))]
    expected = [fast(batch) for batch in batches]
    fresh = on_gpu()
    torch.cuda.synchronize()
    start = threading.Barrier(8)

    def work(seed: int) -> list[float]:
        order = random.Random(seed).choices(range(len(batches)), k=CALLS)
        start.wait()
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode(seed % 2 == 0):
            results = [fresh(batches[index]) for index in order]
            torch.cuda.current_stream().synchronize()
        pairs = (zip(result, expected[index], strict=True) for result, index in zip(results, order, strict=True))
        return [relative_error(*pair) for two in pairs for pair in two]

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(work, range(8)))
    assert max(map(max, errors)) < 1e-6


@pytest.mark.parametrize(
    "surroundings",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cuda"), lambda: torch.device("meta")],
    ids=["inference_mode", "no_grad", "autocast", "meta by default"],
)
def test_gpu_surroundings_change_nothing(surroundings):
    batch = images(2, 3, 32, 32, device="cuda")
    expected = on_gpu("fp32")(batch)
    fast = on_gpu("fp32")
    with surroundings():
        result = fast(batch)
    assert_same(result, expected, 1e-6)
    assert_same(fast(batch), expected, 1e-6)


def test_gpu_spare_rows_do_not_matter():
    fast = on_gpu()
    batch = images(5, 3, 32, 32, device="cuda")
    expected = fast(batch)
    assert all(tensor.isnan().all() for tensor in fast(torch.full((8, 3, 32, 32), torch.nan, device="cuda")))
    assert_same(fast(batch), expected, 1e-6)


def test_gpu_dropped_graphs(monkeypatch):
    made, make_graph = weakref.WeakSet(), torch.cuda.CUDAGraph

    def counted():
        graph = make_graph()
        made.add(graph)
        return graph

    monkeypatch.setattr(graphs, "GRAPHS_KEPT", 2)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", counted)
    fast = on_gpu()
    batches = [images(B, 3, 32, 32, device="cuda") for B in (1, 2, 4, 8, 12)]
    expected = [fast(batch) for batch in batches]
    for _ in range(3):
        for batch, right in zip(batches, expected, strict=True):
            assert_same(fast(batch), right, 1e-6)
    assert len(made) == 2


def test_gpu_models_share_a_pool():
    """Activations take the memory that the first model's graph takes; the second's has its images and outputs alone."""
    batch = images(POOL_BATCH, 3, POOL_SIDE, POOL_SIDE, device="cuda")
    models = [on_gpu(), on_gpu()]
    for fast in models:  # builds the kernels; what cuBLAS and cuDNN need is taken once
        fast(batch[:1])

    def reserved() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    before, taken, results = reserved(), [], []
    for fast in models:
        results.append(fast(batch))
        taken.append(reserved() - before - sum(taken))
    first, second = taken
    assert second <= first / 2
    assert_same(*results, 1e-6)


def test_gpu_model_freed_right_after_its_call():
    """Its weights are read by a replay that has not begun when Python drops them."""
    batch = images(2, 3, 32, 32, device="cuda")
    expected = on_gpu()(batch)
    torch.cuda.synchronize()
    fast, side = on_gpu(), torch.cuda.Stream()
    fast(batch)
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        results = fast(batch)
    weights = sum(buffer.nbytes for buffer in inference_model(dtype=torch.float16).buffers())
    del fast
    torch.full((weights,), 255, dtype=torch.uint8, device="cuda")  # NaN, on another stream, where they may have been
    torch.cuda.synchronize()
    assert_same(results, expected, 1e-6)


def test_gpu_frees_all_memory():
    def run() -> None:
        fast = on_gpu()
        for B in (1, 4, 32):
            fast(images(B, 3, 64, 64, device="cuda"))

    def allocated() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    run()
    before = allocated()
    run()
    assert allocated() == before


@pytest.mark.slow
def test_gpu_thousand_models_leave_nothing():
    model = lookalikes.fill(Conformer(TINY)).eval()
    batch = images(1, 3, 32, 32, device="cuda")

    def cycle() -> None:
        cf.compile(model, backend="triton")(batch)

    def held() -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.memory_allocated(), total - free

    for _ in range(WARM_MODELS):
        cycle()
    allocated, used = held()
    for _ in range(MODELS):
        cycle()
    allocated_after, used_after = held()
    assert allocated_after == allocated
    assert used_after - used < 64 << 20  # of the driver, which rounds up; 1 MB a model would be 1000


@pytest.mark.slow
def test_gpu_out_of_memory():
    fast = on_gpu()
    batch = images(2, 3, SIDE, SIDE, device="cuda")
    expected = fast(batch)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    large = torch.zeros(1, device="cuda").expand(96, 3, SIDE, SIDE)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (100 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            fast(large)
        error = caught.value
        assert isinstance(error, GPUMemoryError)
        assert error.total == total
        words = (
            rf"cuda:\d has no room for the activations of 96 {SIDE}x{SIDE} images in torch.float16: [\d,]+ bytes are"
        )
        assert re.match(words, str(error))
        assert_same(fast(batch), expected, 1e-6)
        fast(batch[:1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(tensor.isfinite().all() for tensor in fast(large))


def test_gpu_refuses_to_be_recorded_in_words():
    fast, batch = on_gpu(), images(1, 3, 32, 32, device="cuda")
    expected = fast(batch)
    graph = torch.cuda.CUDAGraph()
    kept = torch.zeros(4, device="cuda")
    with torch.cuda.graph(graph):
        kept.add_(1)
        for size in (32, 48):
            with pytest.raises(RuntimeError, match="is a CUDA graph already"):
                fast(torch.empty(1, 3, size, size, device="cuda"))
    graph.replay()
    assert_same(fast(batch), expected, 1e-6)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_gpu_second_device():
    model = lookalikes.fill(Conformer(TINY)).eval()
    first, second = (cf.compile(copy.deepcopy(model).to(f"cuda:{index}"), backend="triton") for index in range(2))
    assert [str(fast.device) for fast in (first, second)] == ["cuda:0", "cuda:1"]
    batch = images(3, 3, 32, 32)
    with torch.cuda.device(0):
        ours, theirs = first(batch.to("cuda:0")), second(batch.to("cuda:1"))
        assert {tensor.device for tensor in theirs} == {torch.device("cuda:1")}
    assert_same([tensor.cpu() for tensor in ours], [tensor.cpu() for tensor in theirs], 1e-2)
    with pytest.raises(ValueError, match="compiled for cuda:1, the images are on cuda:0"):
        second(batch.to("cuda:0"))


def test_gpu_backend_is_there():
    assert make("triton").missing() is None
    assert make("triton").precisions().native == ("fp32", "bf16", "fp16")
