"""What the CUDA executor records and returns, on a pretended torch.cuda; test_graphs_gpu.py needs a real one."""

import weakref

import lookalikes
import pytest
import torch
from executor_samples import FORMS, TINY, assert_same, equal, images, inference_model
from graphs_samples import CPU, Faulty
from torch import Tensor

from conformer_fast import Conformer
from conformer_fast.engines.triton import graphs
from conformer_fast.engines.triton.graphs import CUDAGraphEngine
from conformer_fast.inference.lower import lower
from conformer_fast.model.precision import DTYPES


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


def test_maps_and_tokens(cuda):
    model = lower(lookalikes.fill(Conformer(TINY, features_only=True)).eval())
    batch = images(3, 3, 33, 47)
    results = CUDAGraphEngine(model)(batch)
    assert_same(results, model(batch))
    assert all(tensor.is_contiguous() for tensor in results)


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


def test_one_graph_for_each_bucket_and_size(cuda, model):
    engine = CUDAGraphEngine(model)
    recorded = []
    for B, H, W in [(3, 32, 32), (4, 32, 32), (5, 32, 32), (7, 32, 32), (4, 32, 48), (4, 48, 32), (3, 48, 32)]:
        engine(images(B, 3, H, W))
        recorded.append(len(cuda.streams("graph")))
    assert recorded == [1, 1, 2, 2, 3, 4, 4]


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


def test_branches_run_beside_each_other_in_small_batches(cuda, model):
    engine = CUDAGraphEngine(model)
    for B, beside in [(1, True), (8, True), (9, False)]:
        cuda.log.clear()
        engine(images(B, 3, 32, 32))
        assert bool(cuda.streams("beside")) == beside
    assert_same(engine(images(8, 3, 32, 32)), model(images(8, 3, 32, 32)))


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
