"""Every error has one base, and arguments are refused in the same words everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

import conformer_fast as cf
from conformer_fast.errors import first_few, one_of, several, shown, whole


@pytest.mark.parametrize("value", [1, np.int64(3), torch.tensor(7)], ids=repr)
def test_whole_numbers(value):
    assert whole("batch", value) == int(value)
    assert type(whole("batch", value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "1", None, [1], torch.ones(2)], ids=repr)
def test_what_is_no_whole_number(value):
    with pytest.raises(cf.ArgumentError, match="batch must be a whole number, at least 1, got ") as raised:
        whole("batch", value)
    assert repr(value) in str(raised.value)


def test_the_least_is_the_callers():
    assert whole("workers", 0, least=0) == 0
    with pytest.raises(cf.ArgumentError, match="at least 0, got -1"):
        whole("workers", -1, least=0)


def test_names():
    one_of("fruit", "pear", ("apple", "pear"))
    for name in ("nut", "", None, ["pear"]):
        with pytest.raises(cf.ArgumentError, match=r"unknown fruit .*; choose one of apple, pear"):
            one_of("fruit", name, iter(("apple", "pear")))


def test_lists():
    assert several("paths", (path for path in ("a", Path("b")))) == ["a", Path("b")]
    for lone in ("cat.jpg", Path("cat.jpg")):
        with pytest.raises(cf.ArgumentTypeError, match=r"paths must be a list, such as \['cat.jpg'\]"):
            several("paths", lone)
    with pytest.raises(cf.ArgumentTypeError, match="paths must be a list, got 3"):
        several("paths", 3)


def test_names_of_files_are_shown_as_text():
    """A terminal obeys control characters; \\u202e turns the rest of the line around, \\ud800 cannot be printed."""
    assert shown("conv1.weight of \u00e9 and \u732b") == "conv1.weight of \u00e9 and \u732b"
    assert shown("a\x1b[2J\0\n\u202e\ud800") == r"a\x1b[2J\x00\n\u202e\ud800"
    assert shown("a" * 200) == "a" * 200
    assert shown("a" * 201) == "a" * 197 + "..."
    assert shown("\n" * 201) == r"\n" * 98 + "\\..."
    assert shown("\n" * 5, 10) == r"\n" * 5
    assert shown("\n" * 6, 10) == r"\n" * 3 + "\\..."
    assert first_few(["\n", *"abcdef"]) == r"\n, a, b, c, d and 2 more"


DIGITS = cf.create_model("digits", "packaged")
WRONG = {  # all are refused before any work
    "rounds": lambda: cf.benchmark(["digits"], rounds=0),
    "batch": lambda: cf.benchmark(["digits"], [1, 0]),
    "no batch": lambda: cf.benchmark(["digits"], []),
    "a lone model": lambda: cf.benchmark("digits"),
    "a lone model to tune": lambda: cf.tune("digits"),
    "a lone picture": lambda: cf.load_batch("cat.jpg"),
    "the path of a picture": lambda: cf.preprocess("cat.jpg"),
    "a size": lambda: cf.load_batch(["cat.jpg"], 1.5),
    "topk": lambda: cf.compile(DIGITS, backend="reference").predict([], topk=1.5),
    "threads": lambda: cf.OpenVINO(threads=True),
    "tune": lambda: cf.Triton(tune="no"),
    "shapes": lambda: cf.TensorRT(shapes=3),
    "one of the shapes": lambda: cf.TensorRT(shapes=[3]),
    "targets": lambda: cf.TensorRT(targets="sm86"),
    "flavor": lambda: cf.TensorRT(flavor="onnx"),
    "runs": lambda: cf.diff(DIGITS, torch.zeros(1, 3, 64, 64), "reference"),
    "no runs": lambda: cf.diff(DIGITS, torch.zeros(1, 3, 64, 64), []),
    "a run": lambda: cf.diff(DIGITS, torch.zeros(1, 3, 64, 64), ["reference", "engine"]),
    "the size of pictures": lambda: cf.images_in(".", 64.0, 8),
    "no pictures": lambda: cf.images_in(".", 64, 0),
    "no models": lambda: cf.benchmark([]),
    "the size of a benchmark": lambda: cf.benchmark(["digits"], [1], size=-5),
    "a target": lambda: cf.TensorRT(targets=[86]),
    "points": lambda: cf.calibrate(DIGITS, [torch.zeros(1, 3, 64, 64)], max_drop="1"),
    "all points": lambda: cf.calibrate(DIGITS, [torch.zeros(1, 3, 64, 64)], max_drop=float("inf")),
    "a report of nothing": lambda: cf.calibrate(DIGITS, [torch.zeros(1, 3, 64, 64)], report=print),
    "the name of a served model": lambda: cf.export_server("bundle", "models", name=5),
    "a lone output": lambda: cf.export(DIGITS, "x.onnx", outputs="logits"),
    "an output": lambda: cf.compile(DIGITS, backend="reference").engine(["nope"]),
    "an output twice": lambda: cf.compile(DIGITS, backend="reference").engine(["logits", "logits"]),
    "evaluate": lambda: cf.evaluate(DIGITS, "data"),
    "backend": lambda: cf.compile(DIGITS, backend="cuda"),
    "precision": lambda: cf.compile(DIGITS, precision="int4"),
    "training": lambda: cf.compile(cf.create_model("digits").train()),
    "a compiled model": lambda: cf.compile(cf.compile(DIGITS, backend="reference")),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_wrong_arguments(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cf.ArgumentError) as raised:
        call()
    assert len(str(raised.value)) > 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["export", "build", "calibrate", "diff"])
def test_a_compiled_model_in_place_of_its_own(call, tmp_path):
    fast, images = cf.compile(DIGITS, backend="reference"), torch.zeros(1, 3, 64, 64)
    calls = {
        "export": lambda: cf.export(fast, tmp_path / "x.onnx"),
        "build": lambda: cf.build(fast, tmp_path / "x", targets=["sm86"], flavor="tensorrt-rtx"),
        "calibrate": lambda: cf.calibrate(fast, [images]),
        "diff": lambda: cf.diff(fast, images, [("reference", "fp32")]),
    }
    with pytest.raises(cf.ConformerFastError, match="take the model it was made from"):
        calls[call]()
    assert list(tmp_path.iterdir()) == []
