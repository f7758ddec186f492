"""The CUDA executor's memory, on a pretended torch.cuda: pools, what is said when there is none, what is freed."""

import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from executor_samples import assert_same, equal, images, inference_model
from fake_cuda import FREE, TOTAL, OutOfMemory
from graphs_samples import CPU, Faulty

from conformer_fast.engines.cuda import GPUMemoryError
from conformer_fast.engines.triton.graphs import CUDAGraphEngine, shared


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


def test_many_engines_leave_nothing(cuda):
    model = inference_model().with_outputs(["1.tokens"])

    def cycle() -> None:
        engine = CUDAGraphEngine(model)
        engine(images(1, 3, 16, 16))

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    def many() -> int:
        for _ in range(300):
            cycle()
            cuda.log.clear()
            cuda.dead_pools.clear()
        return objects()

    cycle()
    before = objects()
    after = many()
    assert after - before < 30
    assert not cuda.graphs
