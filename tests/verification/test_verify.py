"""The report of verify(): its bounds, and that it tells a wrong engine from a right one."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import lookalikes
import pytest
import torch
from fake_cuda import fake_cuda
from torch import nn
from torch.utils.hooks import RemovableHandle
from verify_samples import BLOCKS, LOGITS, compiled, images, names, run_by, verify

from conformer_fast import Conformer
from conformer_fast.model.distance import ALLOWANCE, FLOOR
from conformer_fast.model.outputs import observed_outputs
from conformer_fast.model.precision import DTYPES


@pytest.fixture
def hooks(monkeypatch) -> list[RemovableHandle]:
    """The handles of all that modules were hooked with during the test."""
    handles = []

    def noting(register):
        def noted(*arguments, **options):
            handles.append(register(*arguments, **options))
            return handles[-1]

        return noted

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, noting(getattr(nn.Module, name)))
    return handles


def left(hooks: list[RemovableHandle]) -> list[RemovableHandle]:
    """Those that are still called; a module that is gone calls none."""
    return [handle for handle in hooks if handle.id in (handle.hooks_dict_ref() or ())]


SETTINGS = [
    ("reference", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("triton", "fp32"),
    ("triton", "bf16"),
    ("triton", "fp16"),
]


@pytest.fixture(params=SETTINGS, ids="-".join)
def settings(request):
    """Each backend in each precision. The GPU of "triton" is pretended, and is the CPU."""
    backend, precision = request.param
    if backend == "openvino":
        pytest.importorskip("onnx")
        pytest.importorskip("openvino")
        from conformer_fast.engines.openvino.device import native_precisions

        if precision not in native_precisions():
            pytest.skip(f"this CPU does not compute in {precision}")
    with fake_cuda() if backend == "triton" else nullcontext():
        yield request.param


def test_every_backend_and_precision_is_within(settings, small_model, capsys):
    batch = images(3, 3, 40, 48)
    report = compiled(small_model, *settings).verify(batch)
    assert (report.backend, report.precision, report.images) == (*settings, 3)
    assert names(report.results) == LOGITS
    assert names(report.blocks) == BLOCKS
    assert report.within
    assert all(row.within for row in report.blocks)
    assert report.verdict.startswith(f"within the bound for {settings[1]}: ")
    assert report.top1_agreement == {"conv": 1.0, "trans": 1.0, "sum": 1.0}
    assert capsys.readouterr().out == f"{report}\n"

    lines = str(report).splitlines()
    assert lines[0] == f"{settings[0]} {settings[1]} against the reference in float64, 3 image(s)"
    assert [line.split()[0] for line in lines[2:-2]] == BLOCKS + LOGITS
    assert lines[-2] == "top-1 agreement: conv 100.0%, trans 100.0%, sum 100.0%"
    assert lines[-1] == report.verdict
    assert "over" not in " ".join(line.split(maxsplit=1)[1] for line in lines[2:-2])


def test_bound_is_from_pytorchs_own_error(settings, small_config, small_model):
    """Recomputed here: eager PyTorch in the same precision, both against float64."""
    precision = settings[1]
    batch = images(2, 3, 32, 32)
    report = verify(compiled(small_model, *settings), batch)
    everything = (*LOGITS, *BLOCKS)
    with torch.no_grad():
        exact = observed_outputs(lookalikes.fill(Conformer(small_config)).eval().double(), batch.double(), everything)
        eager_model = lookalikes.fill(Conformer(small_config)).eval().to(DTYPES[precision])
        eager = observed_outputs(eager_model, batch.to(DTYPES[precision]), everything)
    rows = {row.name: row for row in (*report.results, *report.blocks)}
    assert list(rows) == list(everything)
    for name, true, low in zip(everything, exact, eager, strict=True):
        error = ((low.double() - true).norm() / true.norm()).item()
        assert error > 0
        assert rows[name].eager_error == pytest.approx(error, rel=0.05)
        assert rows[name].bound == ALLOWANCE * rows[name].eager_error + FLOOR[precision]
        assert rows[name].error < 10 * FLOOR[precision]


def test_reports_errors_of_the_size_they_have(small_model):
    fast = compiled(small_model)
    right = fast.engine(LOGITS)
    larger = run_by(lambda batch: tuple(1.25 * scores for scores in right(batch)), fast)
    report = verify(larger, images(2, 3, 32, 32))
    for row in report.results:
        assert row.error == pytest.approx(0.25, rel=1e-3)
        assert row.sqnr_db == pytest.approx(-20 * math.log10(0.25), abs=0.01)
    assert report.top1_agreement == {"conv": 1.0, "trans": 1.0, "sum": 1.0}  # which alone would not show it


@pytest.mark.parametrize("wrong", [0, 1], ids=LOGITS)
def test_wrong_head_is_named(wrong, settings, small_model, capsys):
    fast = compiled(small_model, *settings)
    right = fast.engine(LOGITS)

    def noisy(batch):
        results = list(right(batch))
        noise = images(*results[wrong].shape)
        results[wrong] = results[wrong] + noise * (0.1 * results[wrong].norm() / noise.norm())
        return tuple(results)

    report = run_by(noisy, fast).verify(images(2, 3, 32, 32))
    assert not report.within
    assert [row.within for row in report.results] == [wrong != 0, wrong != 1]
    assert all(row.within for row in report.blocks)
    error = report.results[wrong].error
    assert error == pytest.approx(0.1, rel=0.1)
    assert report.verdict.startswith(f"NOT within the bound for {settings[1]}: {LOGITS[wrong]} errs by {error:.2g}, ")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if line.endswith("over")] == [LOGITS[wrong]]
    assert printed[-1] == report.verdict


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_never_within(value, settings, small_model):
    fast = compiled(small_model, *settings)
    right = fast.engine(LOGITS)

    def broken(batch):
        conv, trans = right(batch)
        conv[0, 3] = value
        return conv, trans

    report = verify(run_by(broken, fast), images(2, 3, 32, 32))
    assert not report.within
    assert math.isnan(report.results[0].error)
    assert report.results[1].within
    assert report.verdict.startswith(
        f"NOT within the bound for {settings[1]}: conv_logits has values that are not finite"
    )
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["results"][0]["error"] is None


@pytest.mark.parametrize("wrong", ["1.map", "2.fcu_down", "2.tokens", "3.fcu_up", "3.map"])
def test_wrong_block_is_marked(wrong, small_model, monkeypatch):
    fast = compiled(small_model)
    engine = fast.engine

    def wrong_inside(outputs):
        def run(batch):
            results = dict(zip(outputs, engine(outputs)(batch), strict=True))
            results[wrong] = results[wrong] * 1.01
            return tuple(results.values())

        return run

    monkeypatch.setattr(fast, "engine", wrong_inside)
    report = verify(fast, images(1, 3, 32, 32))
    assert [row.name for row in report.blocks if not row.within] == [wrong]
    assert next(row.error for row in report.blocks if row.name == wrong) == pytest.approx(0.01, rel=1e-3)
    assert report.within  # what it returns is right


def test_wrong_graph_is_found(small_model, monkeypatch, tmp_path):
    """Not the engine's outputs are spoilt here but its weights, as a wrong rewrite would."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))  # which knows no graph of the same code yet
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from conformer_fast.engines.openvino import backend

    def wrong(*arguments, **options):
        network = right(*arguments, **options)
        network.conv_trans_2.up.bias += 0.05
        return network

    right = backend.lower
    monkeypatch.setattr(backend, "lower", wrong)
    report = verify(compiled(small_model, "openvino"), images(2, 3, 32, 32))
    assert not report.within
    over = [row.name for row in report.blocks if not row.within]
    assert over[0] == "2.fcu_up"
    assert "1.map" not in over
    assert "2.tokens" not in over


def test_top1_agreement_counts_images(small_model):
    fast = compiled(small_model)
    right = fast.engine(LOGITS)

    def mistaken(batch):
        conv, trans = right(batch)
        conv[0] = -conv[0]
        trans[:3] = -trans[:3]
        return conv, trans

    agreement = verify(run_by(mistaken, fast), images(4, 3, 32, 32)).top1_agreement
    assert agreement["conv"] == 0.75
    assert agreement["trans"] == 0.25
    assert agreement["sum"] <= 0.75


GIVEN = {
    "features": (lambda config: Conformer(config, features_only=True), ["1.map", "2.map", "3.map", "3.tokens"]),
    "mmpretrain-backbone": (
        lambda config: lookalikes.MMPretrainBackbone(config, [2, 3]),
        ["2.pooled", "2.class_token", "3.pooled", "3.class_token"],
    ),
    "mmdetection": (lookalikes.MMDetectionBackbone, ["1.map", "2.map", "3.map"]),
}


@pytest.mark.parametrize(("make", "outputs"), GIVEN.values(), ids=GIVEN)
def test_model_without_heads(make, outputs, settings, small_config):
    model = lookalikes.fill(make(small_config))
    model.eval()
    report = verify(compiled(model, *settings), images(2, 3, 32, 48))
    assert names(report.results) == outputs
    assert names(report.blocks) == BLOCKS
    assert report.within
    assert report.top1_agreement == {}
    assert "top-1" not in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_report_as_json(settings, small_model):
    report = verify(compiled(small_model, *settings), images(1, 3, 32, 32))
    values = report.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {"backend", "precision", "images", "results", "blocks", "top1_agreement", "within", "verdict"}
    assert values["within"] is True
    assert values["verdict"] == report.verdict
    first = report.results[0]
    assert values["results"][0] == {
        "name": first.name,
        "error": first.error,
        "eager_error": first.eager_error,
        "bound": first.bound,
    }


def test_verify_leaves_the_compiled_model_as_it_was(settings, small_model, hooks):
    fast = compiled(small_model, *settings)
    batch = images(2, 3, 32, 32)
    before = fast(batch)
    state = {name: tensor.clone() for name, tensor in fast.reference.state_dict().items()}
    verify(fast, batch)
    assert all(torch.equal(*pair) for pair in zip(fast(batch), before, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in fast.reference.state_dict().items())
    assert hooks
    assert not left(hooks)


@pytest.mark.parametrize("surroundings", [torch.inference_mode, lambda: torch.autocast("cpu")], ids=["inf", "autocast"])
def test_surroundings_do_not_widen_the_bound(surroundings, small_model):
    fast, batch = compiled(small_model), images(1, 3, 32, 32)
    expected = verify(fast, batch)
    with surroundings():
        assert verify(fast, batch) == expected


def test_pixels_are_compared_as_the_model_sees_them(settings, small_model):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    fast = compiled(small_model, *settings)
    report = verify(fast, pixels)
    assert report.within
    assert report == verify(fast, fast.as_input(pixels))


def test_observing_leaves_no_hooks(small_model, hooks):
    observed_outputs(small_model, images(1, 3, 32, 32), ["2.fcu_up"])
    assert hooks
    assert not left(hooks)
    made = len(hooks)
    with pytest.raises(ValueError, match="smaller than one"):
        observed_outputs(small_model, images(1, 3, 8, 8), ["2.fcu_up"])
    assert len(hooks) > made
    assert not left(hooks)


def test_engine_of_inner_outputs_runs_in_many_threads(settings, small_model):
    engine = compiled(small_model, *settings).engine(BLOCKS)
    batches = [images(1, 3, 32, 32) * (1 + index) for index in range(4)]
    serial = [engine(batch) for batch in batches]

    def work(index: int) -> bool:
        results = [engine(batches[index]) for _ in range(4)]
        return all(torch.equal(*pair) for result in results for pair in zip(result, serial[index], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
