"""The CPU engine: streams, the engines kept in memory and on disk, what an engine's identity is."""

import itertools

import pytest
import torch

import conformer_fast as cf

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import openvino as ov
from openvino_engines import assert_right, compiled, images, kept_engines

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import device as devices
from conformer_fast.engines.openvino import engine as engine_module
from conformer_fast.engines.openvino.device import describe, native_precisions
from conformer_fast.engines.openvino.engine import Computed, OpenVINOEngine, streams_for
from conformer_fast.engines.openvino.ir import ir_of
from conformer_fast.inference.lower import lower

ONE, EIGHT = [(1, 1, 1), (9, 1, 1)], [(1, 8, 1), (2, 8, 2), (3, 8, 2), (4, 8, 4), (7, 8, 4), (8, 8, 8), (1000, 8, 8)]
UNEVEN = [(2, 3, 2), (3, 3, 3), (5, 6, 4), (6, 6, 6), (11, 12, 8), (12, 12, 12)]


@pytest.mark.parametrize(("batch", "threads", "streams"), [*ONE, *EIGHT, *UNEVEN])
def test_streams(batch, threads, streams):
    assert streams_for(batch, threads) == streams


def test_streams_never_exceed_images_or_threads():
    for batch, threads in itertools.product(range(1, 70), range(1, 70)):
        streams = streams_for(batch, threads)
        assert 1 <= streams <= min(batch, threads)
        assert 2 * streams > min(batch, threads)  # at least half of what there is


def test_kinds_of_engine_a_batch_needs():
    """Whatever batch comes, a thread count has few stream counts: that bounds the engines of one image size, beside
    one or two for several images at once."""
    assert {streams_for(batch, 12) for batch in range(1, 100)} == {1, 2, 4, 8, 12}


@pytest.mark.slow
@pytest.mark.parametrize("own", [0, 1])
def test_engines_stay_whatever_their_number(own, small_model, loaded, monkeypatch):
    """A batch that fills no round needs many: loading them at each call would take longer than running them."""
    monkeypatch.setattr(engine_module, "OWN_SIZES", own)
    fast = compiled(small_model, precision="int8", quantization=[images(4, 3, 32, 32)], threads=4)
    batch = images(23, 3, 32, 32)  # 16, 4, 2 and 1
    first = fast(batch)
    needed = [(4, 4), (1, 4), (1, 2), (1, 1)]
    assert loaded.engines == needed
    assert all(map(torch.equal, fast(batch), first))
    assert loaded.engines == needed


@pytest.mark.parametrize("threads", [1, 2, 3, 200])
def test_any_number_of_threads(threads, small_model):
    batch = images(7, 3, 32, 32)
    assert_right(compiled(small_model, threads=threads)(batch), small_model, batch)


@pytest.fixture
def images_of_runs(monkeypatch) -> list[int]:
    """How many images each run of an engine took, in order."""
    seen, give = [], ov.InferRequest.set_input_tensor

    def counted(request, port, tensor):
        seen.append(tensor.shape[0])
        give(request, port, tensor)

    monkeypatch.setattr(ov.InferRequest, "set_input_tensor", counted)
    return seen


@pytest.mark.parametrize(
    ("batch", "threads", "runs"),
    [(8, 2, [4, 4]), (7, 2, [1] * 7), (12, 2, [4, 4, 1, 1, 1, 1]), (17, 2, [4] * 4 + [1]), (9, 1, [4, 4, 1])],
)
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("int8", 0.02)])
def test_several_images_run_at_once(precision, error, batch, threads, runs, small_model, loaded, images_of_runs):
    """And an image has the result that it has alone, but for sums in another order."""
    calibration = {"quantization": [images(4, 3, 32, 32)]} if precision == "int8" else {}
    fast = compiled(small_model, precision=precision, threads=threads, **calibration)
    given = images(batch, 3, 32, 32)
    together = fast(given)
    assert images_of_runs == runs
    assert {images for images, _ in loaded.engines} == set(runs)
    alone = torch.cat([fast(image[None]).logits for image in given])
    torch.testing.assert_close(together.logits, alone, rtol=error, atol=error * alone.abs().max().item())
    assert together.logits[0].sub(alone[1:]).abs().amax(-1).min() > 0.05 * alone.abs().max()  # images differ


def test_large_images_run_one_at_a_time(small_model, monkeypatch, images_of_runs):
    monkeypatch.setattr(engine_module, "MANY_PIXELS", 32 * 48)
    fast = compiled(small_model, threads=1)
    fast(images(4, 3, 32, 48))
    assert images_of_runs == [1, 1, 1, 1]
    fast(images(4, 3, 47, 32))
    assert images_of_runs == [1, 1, 1, 1, 4]


def test_precision_reaches_the_hardware(small_model):
    if "bf16" not in native_precisions():
        pytest.skip("this CPU does not compute in bf16")
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        exact = small_model.double()(batch.double()).logits
    small_model.float()
    errors = {
        precision: ((compiled(small_model, precision=precision)(batch).logits - exact).norm() / exact.norm()).item()
        for precision in ("fp32", "bf16")
    }
    assert errors["fp32"] < 1e-5
    assert 1e-4 < errors["bf16"] < 5e-2


def test_engines_in_memory_are_bounded(small_model, loaded, monkeypatch):
    """The first sizes have their own, which stay; all others share one. Results are right in any order."""
    monkeypatch.setattr(engine_module, "OWN_SIZES", 2)
    fast = compiled(small_model, threads=1)
    own, others = [(32, 32), (32, 48)], [(48, 32), (33, 47), (64, 96), (48, 32)]
    results = {}
    for size in (*own, *others, *own, *others):
        batch = images(2, 3, *size)
        result = fast(batch)
        assert_right(result, small_model, batch)
        assert all(map(torch.equal, result, results.setdefault(size, result)))
    assert loaded.sizes == {("32", "32"), ("32", "48"), ("?", "?")}
    assert len(loaded.engines) == 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_features_of_any_size(precision, small_config, monkeypatch):
    """Outputs whose sizes only a run tells, in batches of more than run at once."""
    torch.manual_seed(0)
    model = cf.create_model(small_config, features_only=True)
    calibration = {"quantization": [images(4, 3, 32, 32)]} if precision == "int8" else {}
    own, shared = (compiled(model, precision=precision, threads=1, **calibration) for _ in range(2))
    for size in ((64, 96), (33, 47)):
        batch = images(5, 3, *size)
        expected = own(batch)
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "OWN_SIZES", 0)
            found = shared(batch)
        for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
            for mine, other in zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]:
                assert mine.shape == other.shape
                error = (mine - other).norm() / other.norm()
                assert error < (1e-5 if precision == "fp32" else 0.05), name


def test_a_size_whose_engine_cannot_be_built_takes_no_place(small_model, own_cache, loaded, monkeypatch):
    monkeypatch.setattr(engine_module, "OWN_SIZES", 1)
    fast = compiled(small_model)
    with monkeypatch.context() as patch:
        patch.setattr(ov.Core, "compile_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast(images(1, 3, 32, 64))
    fast(images(1, 3, 32, 32))
    assert loaded.sizes == {("32", "32")}


def test_second_compile_exports_nothing(small_model, own_cache, builds):
    batch = images(3, 3, 32, 32)
    first = compiled(small_model)(batch)
    assert len(builds) == 1
    second = compiled(small_model)(batch)
    assert len(builds) == 1
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_batches_and_threads_share_an_engine(small_model, own_cache, builds):
    """The key has the image's size, neither the batch's nor the machine's load."""
    for threads in (1, 2):
        for batch_size in (1, 2, 3):
            compiled(small_model, threads=threads)(images(batch_size, 3, 32, 32))
    assert len(builds) == len(kept_engines()) == 1


def one_ulp(model):
    weight = model.conv_trans_2.trans_block.mlp.fc1.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    return model


def other_norm(model):
    with torch.no_grad():
        model.conv_trans_3.fusion_block.bn3.running_var[3] *= 1.5
    return model


CHANGES = {
    "one weight by one ulp": one_ulp,
    "a running variance": other_norm,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_are_another_engine(change, small_model, own_cache, builds):
    batch = images(1, 3, 32, 32)
    compiled(small_model)(batch)
    assert_right(compiled(change(small_model))(batch), small_model, batch)
    assert len(builds) == len(kept_engines()) == 2


def test_heads_that_leave_no_trace_in_the_weights_are_another_engine(small_config, own_cache):
    """Two and three heads have the same state dict."""
    batch = images(1, 3, 32, 32)
    for heads in (2, 3):
        config = cf.ConformerConfig(**{**vars(small_config), "num_heads": heads})
        torch.manual_seed(0)
        model = cf.create_model(config)
        assert_right(compiled(model)(batch), model, batch)
    assert len(kept_engines()) == 2


@pytest.mark.slow
def test_everything_that_decides_an_engine_is_in_its_key(small_model, own_cache, monkeypatch):
    batch = images(1, 3, 32, 48)
    fast = compiled(small_model)
    fast(batch)
    fast.engine(["trans_logits"])(batch)
    fast.engine(["trans_logits", "conv_logits"])(batch)
    fast(batch.transpose(2, 3))
    assert len(kept_engines()) == 4
    fields = kept_engines()[0].fields
    assert set(fields) == {*describe(), "ir", "backend", "precision", "rest", "images", "height", "width"}
    assert (fields["height"], fields["width"]) == (48, 32)

    elsewhere = {**describe(), "device": "another"}
    monkeypatch.setattr(engine_module, "describe", lambda _: elsewhere)
    compiled(small_model)(batch)
    monkeypatch.setattr(engine_module, "describe", lambda _: {**elsewhere, "openvino": "0.0"})
    compiled(small_model)(batch)
    assert len(kept_engines()) == 6


def test_precision_is_in_the_key(small_model, own_cache):
    graph = onnx_from_model(lower(small_model), products="conv").SerializeToString()
    for precision in devices.PRECISIONS:
        ir = ir_of(graph, precision)
        OpenVINOEngine(lambda ir=ir: ir, Computed(precision, precision), 1)(images(1, 3, 32, 32))
    assert {entry.fields["precision"] for entry in kept_engines()} == {"fp32", "bf16", "fp16"}
