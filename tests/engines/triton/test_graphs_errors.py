"""Errors in the CUDA executor's runs and recordings, on a pretended torch.cuda: the next call runs."""

import gc

import pytest
import torch
from executor_samples import assert_same, equal, images, inference_model
from graphs_samples import Faulty

from conformer_fast.engines.triton.graphs import CUDAGraphEngine


def test_order_is_kept_after_an_error(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    expected = engine(batch)
    with pytest.raises(RuntimeError, match="must match the size"):
        engine(images(1, 2, 32, 32))  # compile's own check would not let this through
    assert cuda.log[-1][0] == "done"
    with torch.cuda.stream(torch.cuda.Stream()):
        assert equal(engine(batch), expected)


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


def test_call_while_recording_is_refused_in_words(cuda, model):
    engine, batch = CUDAGraphEngine(model), images(1, 3, 32, 32)
    engine(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, (0, 99), torch.cuda.Stream(), capture_error_mode="thread_local"):
        for size in (32, 48):
            with pytest.raises(RuntimeError, match=r"is a CUDA graph already; call it outside of torch\.cuda\.graph"):
                engine(images(1, 3, size, size))
    engine(batch)
