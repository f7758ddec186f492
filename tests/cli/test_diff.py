"""conformer-fast diff, driven as a user would."""

from __future__ import annotations

import json
import os
from xml.etree import ElementTree

import pytest
import torch

import conformer_fast as cf
from conformer_fast.calibration.calibrate import input_ranges
from conformer_fast.cli import diff, main
from conformer_fast.datasets.digits import digit_image
from conformer_fast.errors import BackendError
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization, save_quantization
from conformer_fast.preprocessing.cpu import load_batch
from conformer_fast.verification import implementations

DIGITS = ("--model", "digits")
LOGITS = ("conv_logits", "trans_logits")


@pytest.fixture
def digit_files(tmp_path):
    """Six of scikit-learn's digits as PNG files, in a folder of their own."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for index, pixels in enumerate(load_digits().images[:6]):
        paths.append(str(folder / f"{index}.png"))
        digit_image(pixels).save(paths[-1])
    return paths


@pytest.fixture
def spoilt(monkeypatch):
    """Makes "onnxruntime" return wrong scores."""

    def run(job, precision):
        with torch.no_grad():
            (blocks, scores) = (job.fused().with_outputs(part)(job.images) for part in (job.inside, job.results))
        values = dict(zip((*job.inside, *job.results), (*blocks, *(-score for score in scores)), strict=True))
        return implementations.Ran("spoilt", "here", values)

    monkeypatch.setitem(implementations.RUNNERS, "onnxruntime", run)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_compares_what_runs_here(capsys, digit_files, tmp_path):
    pytest.importorskip("onnxruntime")
    picture = tmp_path / "out.svg"
    arguments = ["diff", *DIGITS, "--images", *digit_files[:3], "--precisions", "fp32", "bf16", "--svg", picture]
    status, out, err = run(capsys, *arguments)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("SQNR in dB against the reference in float64, 3 image(s) of 64x64")
    assert lines[1].split()[:3] == ["fp32", "reference", "onnxruntime"]
    assert [line.split()[0] for line in lines[2:14]][-3:] == ["3.map", *LOGITS]
    assert any(line.startswith("onnxruntime bf16: not run: ") for line in lines)
    assert lines[-1] == f"heat map: {picture}"
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert any(text == "digits: SQNR against the reference" for text in root.itertext())


def test_json_and_noise_of_the_asked_size(capsys):
    status, out, _ = run(
        capsys, "diff", *DIGITS, "--size", "32", "--precisions", "bf16", "--implementations", "reference", "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert (found["model"], found["weights"], found["svg"]) == ("digits", "packaged", None)
    assert (found["images"], found["height"], found["width"]) == (2, 32, 32)
    assert [column["implementation"] for column in found["columns"]] == ["reference"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_8_bits_take_pictures_or_a_file(capsys, digit_files, tmp_path, kind):
    calibration = tmp_path / "photos"
    if kind == "file":
        batch = load_batch(digit_files, 64)
        ranges = input_ranges(lower(cf.create_model("digits", "packaged")), [batch])
        calibration = save_quantization(Quantization("int8", ranges), tmp_path / "quantization.json")
    arguments = ["diff", *DIGITS, "--images", digit_files[0], "--precisions", "int8", "--implementations", "reference"]
    status, out, err = run(capsys, *arguments, "--json", "--calibration", calibration)
    (column,) = json.loads(out)["columns"]
    assert (status, err) == (0, "")
    assert column["how"] == "PyTorch, simulated"
    assert 1e-3 < column["report"]["results"][0]["error"] < 0.1


def test_status_1_when_a_result_is_over_its_bound(capsys, spoilt):
    arguments = ["diff", *DIGITS, "--size", "32", "--precisions", "fp32", "--implementations", "onnxruntime"]
    status, out, _ = run(capsys, *arguments)
    assert status == 1
    assert "spoilt fp32: NOT within the bound; conv_logits is the first of 2 over its own" in out
    status, out, _ = run(capsys, *arguments, "--json")
    assert (status, json.loads(out)["within"]) == (1, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted")
def test_kernels_are_interpreted_if_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")  # which the tests set for themselves
    asked = []

    def kernels(job, precision):
        asked.append(os.environ.get("TRITON_INTERPRET"))
        raise BackendError("enough")

    monkeypatch.setitem(implementations.RUNNERS, "kernels", kernels)
    arguments = ["diff", *DIGITS, "--size", "32", "--precisions", "fp16", "--implementations"]
    status, out, err = run(capsys, *arguments, "kernels")
    assert (status, asked) == (0, ["1"])
    assert "Triton's interpreter runs the kernels" in err
    assert "kernels fp16: not run: enough" in out.splitlines()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert run(capsys, *arguments, "reference")[2] == ""
    assert "TRITON_INTERPRET" not in os.environ
    assert diff._usual() == ["onnxruntime", "engine"]


def test_kernels_run_by_default_on_a_gpu(monkeypatch):
    monkeypatch.setattr(diff, "interprets_kernels", lambda: False)
    assert diff._usual() == ["kernels", "onnxruntime", "engine"]


WRONG = {
    "no folder for the picture": (["--svg", "absent/out.svg"], "absent/out.svg: the folder absent does not exist"),
    "no picture": (["--images", "absent.png"], "absent.png"),
    "no calibration": (["--precisions", "int8"], "takes its ranges from images"),
    "calibration for nothing": (["--calibration", "."], "calibration is for int8 and fp8"),
    "no weights": (["--weights", "absent.pth"], "absent.pth"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.png").touch()
    status, out, err = run(capsys, "diff", *DIGITS, "--size", "32", "--implementations", "reference", *arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("conformer-fast diff: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments", [["--precisions"], ["--precisions", "int4"], ["--implementations", "onnx"]], ids=str
)
def test_wrong_arguments_are_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main.main(["diff", *DIGITS, *arguments])
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err
