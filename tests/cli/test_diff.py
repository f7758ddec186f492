"""conformer-fast diff."""

from __future__ import annotations

import os
import sys
from xml.etree import ElementTree

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines.onnx import runtime
from conformer_fast.engines.triton import alone
from conformer_fast.engines.triton.backend import Triton
from conformer_fast.verification import implementations

DIGITS = ("--model", "digits")
LOGITS = ("conv_logits", "trans_logits")


@pytest.fixture
def spoilt(monkeypatch):
    """Makes "onnxruntime" return wrong scores."""
    right = runtime.ONNXRuntime.run

    def run(self, *given):
        ran = right(self, *given)
        named = zip(given[1], ran.values, strict=True)
        return ran._replace(values=tuple(-value if name in LOGITS else value for name, value in named))

    monkeypatch.setattr(runtime.ONNXRuntime, "run", run)


def test_what_runs_here_is_compared(run, digit_files, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.svg"
    arguments = ["--images", *digit_files[:3], "--precisions", "fp32", "bf16", "--svg", picture]
    status, out, err = run("diff", *DIGITS, *arguments)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith("SQNR in dB against the reference in float64, 3 image(s) of 64x64")
    assert {"reference", "onnxruntime"} <= set(lines[1].split())
    assert {*LOGITS, "3.map"} <= {line.split()[0] for line in lines}
    assert any(line.startswith("onnxruntime bf16: not run: ") for line in lines)
    assert lines[-1] == f"heat map: {picture}"
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert any(text == "digits: SQNR against the reference" for text in root.itertext())


def test_noise_of_the_asked_size(run_json):
    arguments = ("--size", "32", "--precisions", "bf16", "--implementations", "reference")
    status, found, _ = run_json("diff", *DIGITS, *arguments)
    assert status == 0
    assert (found["model"], found["weights"], found["svg"]) == ("digits", "packaged", None)
    assert (found["images"], found["height"], found["width"]) == (2, 32, 32)
    assert [column["implementation"] for column in found["columns"]] == ["reference"]


@pytest.mark.parametrize("option", ["--calibration", "--quantization"])
def test_8_bits_take_pictures_or_a_file(run_json, digit_files, digit_folder, tmp_path, option):
    source = digit_folder
    if option == "--quantization":
        images = [cf.load_batch(digit_files, 64)]
        source = cf.calibrate(cf.create_model("digits", "packaged"), images).save(tmp_path / "q.json")
    arguments = ["--images", digit_files[0], "--precisions", "int8", "--implementations", "reference"]
    status, found, err = run_json("diff", *DIGITS, *arguments, option, source)
    (column,) = found["columns"]
    assert (status, err) == (0, "")
    assert column["how"] == "PyTorch, simulated"
    assert 1e-3 < column["report"]["results"][0]["error"] < 0.1


def test_status_1_when_a_result_is_over_its_bound(run, run_json, spoilt):
    pytest.importorskip("onnxruntime")
    arguments = ["diff", *DIGITS, "--size", "32", "--precisions", "fp32", "--implementations", "onnxruntime"]
    status, out, _ = run(*arguments)
    assert status == 1
    assert "onnxruntime fp32: NOT within the bound; conv_logits is the first of 2 over its own" in out
    status, found, _ = run_json(*arguments)
    assert (status, found["within"]) == (1, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted")
def test_kernels_are_interpreted_if_asked_for(run, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")  # which the tests set for themselves
    asked = []

    def kernels(self, *given):
        asked.append(os.environ.get("TRITON_INTERPRET"))
        raise cf.BackendError("enough")

    monkeypatch.setattr(alone.Kernels, "run", kernels)
    arguments = ["diff", *DIGITS, "--size", "32", "--precisions", "fp16", "--implementations"]
    status, out, err = run(*arguments, "kernels")
    assert (status, asked) == (2, ["1"])  # nothing was compared
    assert "Triton's interpreter runs the kernels" in err
    assert "kernels fp16: not run: enough" in out.splitlines()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert run(*arguments, "reference")[2] == ""
    assert "TRITON_INTERPRET" not in os.environ


@pytest.mark.parametrize("interpreted", [True, False])
def test_kernels_run_by_default_on_a_gpu_alone(monkeypatch, interpreted):
    monkeypatch.setattr(Triton, "missing", lambda self: "no CUDA device" if interpreted else None)
    assert implementations.usual() == [*([] if interpreted else ["kernels"]), "onnxruntime", "engine"]


WRONG = {
    "no folder for the picture": (["--svg", "absent/out.svg"], "absent/out.svg: the folder absent does not exist"),
    "no picture": (["--images", "absent.png"], "absent.png"),
    "no ranges": (["--precisions", "int8"], "int8 takes its ranges from images"),
    "ranges for nothing": (["--calibration", "."], "--calibration is for int8 and fp8; leave it out"),
    "no pictures": (["--calibration", ".", "--precisions", "int8"], "has no pictures"),
    "no weights": (["--weights", "absent.pth"], "absent.pth"),
    "no such precision": (["--precisions", "int4"], "invalid choice: 'int4'"),
    "no such implementation": (["--implementations", "onnx"], "invalid choice: 'onnx'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_status_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("diff", *DIGITS, "--size", "32", "--implementations", "reference", *arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("conformer-fast diff: ")
    assert message in err


def test_without_matplotlib(run, monkeypatch, tmp_path):
    """It is said before any work."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: pytest.fail("worked first"))
    status, _, err = run("diff", *DIGITS, "--svg", tmp_path / "out.svg")
    assert status == 2
    assert 'pip install "conformer-fast[report]"' in err
