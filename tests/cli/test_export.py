"""conformer-fast export."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf
from conformer_fast.model.distance import relative_error
from conformer_fast.model.outputs import LOGITS

onnx = pytest.importorskip("onnx")
DIGITS = ("--model", "digits")


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_the_graph_is_right(run, precision, bound, tmp_path, digit_folder):
    file = tmp_path / "digits.onnx"
    calibration = ["--calibration", digit_folder] if precision == "int8" else []
    status, out, err = run("export", *DIGITS, "--precision", precision, *calibration, "-o", file)
    assert (status, err) == (0, "")
    assert out == f"{file}: {file.stat().st_size / 1e6:.1f} MB, {precision}, outputs conv_logits, trans_logits\n"
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = cf.create_model("digits", weights="packaged")(images)
    for value, exact in zip(session.run(LOGITS, {"images": images.numpy()}), expected, strict=True):
        assert relative_error(torch.from_numpy(value), exact) < bound


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        (["--features"], ["1.map", "2.map", "3.map", "3.tokens"]),
        (["--outputs", "logits"], ["logits"]),
        (["--outputs", "3.pooled, trans_logits,"], ["3.pooled", "trans_logits"]),
        (["--features", "--outputs", "2.map"], ["2.map"]),
    ],
    ids=str,
)
def test_other_outputs(run_json, options, outputs, tmp_path):
    file = tmp_path / "digits.onnx"
    status, result, _ = run_json("export", *DIGITS, *options, "-o", file)
    size = file.stat().st_size
    assert status == 0
    assert result == {"file": str(file), "bytes": size, "precision": "fp16", "outputs": outputs}
    assert [output.name for output in onnx.load(file).graph.output] == outputs


def test_as_many_pictures_as_asked_of_the_size_that_was_asked(run, tmp_path, digit_folder, monkeypatch):
    shapes, original = [], cf.images_in

    def spy(folder, side, limit, *, recipe):
        for batch in original(folder, side, limit, recipe=recipe):
            shapes.append(tuple(batch.shape))
            yield batch

    monkeypatch.setattr(cf, "images_in", spy)
    calibration = ["--precision", "int8", "--calibration", digit_folder]
    arguments = ["export", *DIGITS, *calibration, "-o", tmp_path / "a.onnx"]
    assert run(*arguments)[0] == 0
    assert run(*arguments, "--calibration-limit", "9", "--size", "96")[0] == 0
    assert shapes == [(8, 3, 64, 64)] * 5 + [(8, 3, 96, 96), (1, 3, 96, 96)]


def test_pictures_and_the_file_of_calibrate_give_the_same_graph(run, digit_folder, tmp_path):
    file = tmp_path / "q.json"
    assert run("calibrate", *DIGITS, "--data", digit_folder, "-o", file)[0] == 0
    for name, option in {"a": ("--quantization", file), "b": ("--calibration", digit_folder)}.items():
        arguments = ["export", *DIGITS, "--precision", "int8", *option]
        assert run(*arguments, "-o", tmp_path / f"{name}.onnx")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--outputs", "scores"], "no such outputs: 'scores'"),
        (["--outputs", ","], "one or more different names"),
        (["--features", "--outputs", "logits"], "no such outputs: 'logits'"),
        (["--precision", "fp8"], "fp8 takes its ranges from images: give --calibration DIR"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line_and_leaves_no_file(run, options, message, tmp_path):
    status, out, err = run("export", *DIGITS, *options, "-o", tmp_path / "made.onnx")
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast export: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_costs_no_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: pytest.fail("worked first"))
    status, _, err = run("export", *DIGITS, "-o", tmp_path / "none" / "a.onnx")
    assert status == 2
    assert "none does not exist; create it first" in err


def test_without_onnx(run, tmp_path, monkeypatch):
    monkeypatch.setattr("conformer_fast.engines.onnx.graph.find_spec", lambda name: None)
    status, _, err = run("export", *DIGITS, "-o", tmp_path / "a.onnx")
    assert status == 2
    assert 'pip install "conformer-fast[onnx]"' in err


def test_an_output_must_be_named(run):
    status, _, err = run("export", *DIGITS)
    assert status == 2
    assert "-o" in err
