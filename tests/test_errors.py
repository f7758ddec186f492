"""Every error has one base, and arguments are refused in the same words everywhere."""

import re
from collections import Counter
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_samples import small
from PIL import Image

import conformer_fast as cf
from conformer_fast.calibration.accuracy_gate import check_max_drop
from conformer_fast.datasets.dataset import Dataset
from conformer_fast.errors import a_function, a_path, first_few, one_of, path_text, several, shown, truth, whole


class BytesPath:
    def __fspath__(self):
        return b"a"


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
    for name in ("nut", "", None, ["pear"], np.array(["pear"]), np.array(["pear", "apple"])):
        with pytest.raises(cf.ArgumentError, match=r"unknown fruit .*; choose one of apple, pear"):
            one_of("fruit", name, iter(("apple", "pear")))


def test_lists():
    assert several("paths", (path for path in ("a", Path("b")))) == ["a", Path("b")]
    for lone in ("cat.jpg", Path("cat.jpg")):
        with pytest.raises(cf.ArgumentTypeError, match=r"paths must be a list, such as \['cat.jpg'\]"):
            several("paths", lone)
    for value in (3, b"ab", torch.tensor(3)):
        with pytest.raises(cf.ArgumentTypeError, match=rf"paths must be a list, got {re.escape(repr(value))}"):
            several("paths", value)


def test_what_has_no_order_is_no_list():
    for value in ({"a"}, frozenset("a"), {"a": 0}, Counter("a")):
        with pytest.raises(
            cf.ArgumentTypeError, match=rf"names must be a list, in an order, got {re.escape(repr(value))}"
        ):
            several("names", value)
    assert several("names", {"b": 0, "a": 1}.keys()) == ["b", "a"]


def test_what_an_iterator_raises_is_its_own():
    def broken():
        yield 1 + None

    with pytest.raises(TypeError, match="unsupported operand"):
        several("paths", broken())


def test_paths():
    assert a_path("the data", "a/b") == a_path("the data", Path("a/b")) == Path("a/b")
    assert path_text("a picture", "./a") == "./a"
    for value in (None, 3, b"a", ["a"], BytesPath()):
        with pytest.raises(cf.ArgumentTypeError, match="the data must be a path, got "):
            a_path("the data", value)
    with pytest.raises(cf.ArgumentError, match=r"the data must be a path, got ''; the current folder is '\.'"):
        a_path("the data", "")


def test_true_and_false():
    assert (truth("ema", True), truth("ema", False)) == (True, False)
    for value in ("no", 1, None, "a\nb"):
        with pytest.raises(cf.ArgumentTypeError, match=re.escape(f"ema must be True or False, got {value!r}")):
            truth("ema", value)


LARGE = np.zeros((2, 2))  # whose repr() has two lines
CHECKS = {
    "whole": lambda it: whole("batch", it),
    "truth": lambda it: truth("ema", it),
    "a_function": lambda it: a_function("each", it),
    "a_path": lambda it: a_path("the data", it),
    "one_of": lambda it: one_of("precision", it, ("a", "b")),
    "several": lambda it: several("paths", {"a": it}),
    "Conformer": cf.Conformer,
    "pad": lambda it: cf.create_model("digits", pad=it),
    "num_classes": lambda it: cf.create_model("digits", num_classes=it),
    "name": cf.create_model,
    "dialect": lambda it: cf.save_weights(DIGITS.state_dict(), "x.safetensors", it),
    "backend": lambda it: cf.compile(DIGITS, backend=it),
    "targets": lambda it: cf.TensorRT(targets=it),
    "shapes": lambda it: cf.TensorRT(shapes=it),
    "limits": lambda it: cf.Shapes(batch=it),
    "outputs": lambda it: FAST.engine(it),
    "labels": lambda it: cf.Recipe(labels=it),
    "mean": lambda it: cf.Recipe(mean=it),
    "points": check_max_drop,
    "size": lambda it: cf.load_batch(["cat.jpg"], it),
    "name of a served model": lambda it: cf.export_server("bundle", "models", name=it),
    "device": lambda it: cf.compile(DIGITS, device=it),
    "classes": lambda it: cf.explain(DIGITS, IMAGE, it),
    "a large device": lambda _: cf.compile(DIGITS, device=10**30),
}


@pytest.mark.parametrize("call", CHECKS.values(), ids=CHECKS)
def test_a_value_of_several_lines_is_shown_in_one(call):
    with pytest.raises(cf.ConformerFastError, match=r"\A[^\n]{20,500}\Z"):
        call(LARGE)


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


WEIGHTS = Path(cf.__file__).parent / "data" / "digits.safetensors"
DIGITS = cf.create_model("digits", "packaged")
NONE = Dataset("data", "folder", (), ())
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
    "threads of native": lambda: cf.Native(threads="2"),
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
    "labels in no order": lambda: cf.Recipe(labels={"cat", "dog"}),
    "numbered labels": lambda: cf.Recipe(labels={"cat": 1, "dog": 0}),
    "a mean in no order": lambda: cf.Recipe(mean={0.5}, std={0.5}),
    "class names in no order": lambda: cf.open_dataset(".", class_names={"cat": 1}),
    "bytes as class names": lambda: cf.open_dataset(".", class_names=b"x"),
    "pictures in no order": lambda: cf.Pictures({"cat.jpg": 1}, 64),
    "predictions in no order": lambda: FAST.predict({"cat.jpg"}),
    "no path among paths": lambda: FAST.predict(["cat.jpg", None]),
    "bytes as paths": lambda: FAST.predict(b"cat.jpg"),
    "a batch's path": lambda: cf.load_batch([None]),
    "a cache": lambda: cf.calibrate(DIGITS, [IMAGE], cache=0),
    "precisions": lambda: cf.calibrate(DIGITS, [IMAGE], precision=["int8"]),
    "a class that is none": lambda: cf.explain(DIGITS, IMAGE, 10),
    "classes of no image": lambda: cf.explain(DIGITS, IMAGE, [1, 2]),
    "numbers as images": lambda: cf.calibrate(DIGITS, torch.zeros(2)),
    "a number as a batch": lambda: cf.calibrate(DIGITS, [torch.tensor(1.0)]),
    "no folder of images": lambda: cf.calibrate(DIGITS, ""),
    "smoothing": lambda: cf.calibrate(DIGITS, [IMAGE], smoothquant="no"),
    "a report": lambda: cf.calibrate(DIGITS, [IMAGE], max_drop=1, report=3),
    "no batch of a data set": lambda: cf.DatasetBatches(NONE, 64, None),
    "a batch of a data set": lambda: cf.DatasetBatches(NONE, 64, 0),
    "a batch of pictures": lambda: cf.Pictures([], 64, "x"),
    "a size of pictures": lambda: cf.Pictures([], None),
    "evenly nothing": lambda: NONE.evenly(None),
    "evenly less": lambda: NONE.evenly(-1),
    "a picture read": lambda: NONE.read(None),
    "a picture's input": lambda: NONE.input(None, 64),
    "numbers as weights": lambda: cf.save_weights({"a": 1}, "x.safetensors"),
    "no weights": lambda: cf.save_weights({}, "x.safetensors"),
    "each of a benchmark": lambda: cf.benchmark(["digits"], each=None),
    "each to tune": lambda: cf.tune(["digits"], each=None),
    "a NUL to load": lambda: cf.load("a\0b"),
    "a NUL to save": lambda: FAST.save("a\0b"),
    "a NUL to serve": lambda: cf.export_server("a\0b", "models"),
    "an absent quantization": lambda: cf.Quantization.load("missing"),
    "features_only": lambda: cf.create_model("digits", features_only="nope"),
    "ema": lambda: cf.load_weights(DIGITS, WEIGHTS, ema="no"),
    "ema of a file": lambda: cf.read_state_dict(WEIGHTS, ema=1),
    "images of a reference": lambda: DIGITS(np.zeros((1, 3, 64, 64))),
    "a compiled model": lambda: cf.compile(cf.compile(DIGITS, backend="reference")),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_wrong_arguments(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cf.ArgumentError, match=r"\A[^\n]{20,}\Z"):
        call()
    assert list(tmp_path.iterdir()) == []


IMAGE = torch.zeros(1, 3, 64, 64)
FAST = cf.compile(DIGITS, backend="reference")
FAST_DETECTOR = cf.compile(small(masks=False), backend="reference")
SINGLE = Image.new("RGB", (64, 64))
TAKES = {  # for what another type is refused: each entry's arguments, one after another
    "batch model": lambda it: cf.batch(it, ".", "x.csv"),
    "batch source": lambda it: cf.batch(FAST, it, "x.csv"),
    "batch output": lambda it: cf.batch(FAST, ".", it),
    "benchmark models": cf.benchmark,
    "build model": lambda it: cf.build(it, "bundle", targets=["sm86"], flavor="tensorrt-rtx"),
    "build folder": lambda it: cf.build(DIGITS, it, targets=["sm86"], flavor="tensorrt-rtx"),
    "calibrate model": lambda it: cf.calibrate(it, [IMAGE]),
    "calibrate images": lambda it: cf.calibrate(DIGITS, it),
    "compile model": cf.compile,
    "Detector config": cf.Detector,
    "a detector's call": lambda it: FAST_DETECTOR(it),
    "a detector's sizes": lambda it: FAST_DETECTOR(IMAGE, it or 3),
    "a detector's predict": lambda it: FAST_DETECTOR.predict(it),
    "a detector's reference": lambda it: FAST_DETECTOR.verify(IMAGE, it or 3),
    "a detector's verify": lambda it: FAST_DETECTOR.verify(it),
    "a detector's recipe": lambda it: setattr(small(masks=False), "recipe", it),
    "a detector's calibration": lambda it: cf.calibrate(small(masks=False), it),
    "compile backend": lambda it: cf.compile(DIGITS, backend=it),
    "compile precision": lambda it: cf.compile(DIGITS, precision=it),
    "Conformer config": cf.Conformer,
    "convert source": lambda it: cf.convert(it, "x.safetensors"),
    "convert target": lambda it: cf.convert(WEIGHTS, it),
    "convert recipe": lambda it: cf.convert(WEIGHTS, "x.safetensors", recipe=it),
    "create_detector name": lambda it: cf.create_detector(it or 3),
    "create_detector weights": lambda it: cf.create_detector("mask-rcnn", it or 3),
    "create_model name": cf.create_model,
    "create_model weights": lambda it: cf.create_model("digits", it or 3),
    "DatasetBatches": lambda it: cf.DatasetBatches(it, 64),
    "diff model": lambda it: cf.diff(it, IMAGE),
    "diff images": lambda it: cf.diff(DIGITS, it, [("reference", "fp32")]),
    "evaluate model": lambda it: cf.evaluate(it, "data"),
    "evaluate data": lambda it: cf.evaluate(FAST, it),
    "evaluate_detector detector": lambda it: cf.evaluate_detector(it, "x.json", "."),
    "evaluate_detector annotations": lambda it: cf.evaluate_detector(FAST_DETECTOR, it, "."),
    "evaluate_detector images": lambda it: cf.evaluate_detector(FAST_DETECTOR, "x.json", it),
    "explain model": lambda it: cf.explain(it, IMAGE),
    "explain images": lambda it: cf.explain(DIGITS, it),
    "explain classes": lambda it: cf.explain(DIGITS, IMAGE, [it] if it != 3 else "3"),
    "export model": lambda it: cf.export(it, "x.onnx"),
    "export file": lambda it: cf.export(DIGITS, it),
    "export_server bundle": lambda it: cf.export_server(it, "models"),
    "export_server repository": lambda it: cf.export_server("bundle", it),
    "fit_pictures": cf.fit_pictures,
    "fit_pictures of what is none": lambda it: cf.fit_pictures([it]),
    "images_in folder": lambda it: cf.images_in(it, 64, 8),
    "images_in size": lambda it: cf.images_in(".", it, 8) if it != 3 else cf.images_in(".", "3", 8),
    "load": cf.load,
    "load_batch": cf.load_batch,
    "load_batch recipe": lambda it: cf.preprocess(SINGLE, recipe=it),
    "load_weights model": lambda it: cf.load_weights(it, WEIGHTS),
    "load_weights source": lambda it: cf.load_weights(DIGITS, it),
    "open_dataset path": cf.open_dataset,
    "open_dataset labels": lambda it: cf.open_dataset(".", it or 3),
    "open_dataset names": lambda it: cf.open_dataset(".", class_names=it or 3),
    "Pictures": lambda it: cf.Pictures(it, 64),
    "Pictures recipe": lambda it: cf.Pictures([], 64, recipe=it),
    "preprocess": cf.preprocess,
    "Quantization": cf.Quantization.load,
    "read_state_dict": cf.read_state_dict,
    "Recipe": cf.Recipe.from_json,
    "serve model": cf.serve,
    "serve_app bundle": cf.serve_app,
    "recipe": lambda it: setattr(cf.Conformer(DIGITS.config), "recipe", it),
    "save_weights state": lambda it: cf.save_weights(it, "x.safetensors"),
    "save_weights path": lambda it: cf.save_weights(DIGITS.state_dict(), it),
    "save_weights recipe": lambda it: cf.save_weights(DIGITS.state_dict(), "x.safetensors", recipe=it),
    "tune": cf.tune,
    "a model's call": FAST,
    "a reference's call": DIGITS,
    "a model's engine": FAST.engine,
    "a model's predict": FAST.predict,
    "a model's save": FAST.save,
    "a model's verify": FAST.verify,
}


@pytest.mark.parametrize("value", [None, 3, object()], ids=["None", "3", "object"])
@pytest.mark.parametrize("call", TAKES.values(), ids=TAKES)
def test_another_type_is_refused_in_a_line(call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cf.ArgumentTypeError, match=r"^[^\n]{20,}$"):
        call(value)
    assert list(tmp_path.iterdir()) == []


def test_every_entry_of_the_face_is_among_them():
    entries = {name for name in cf.__all__ if isfunction(getattr(cf, name))} - {"info", "cached_engines", "clear_cache"}
    assert entries <= {name.split()[0] for name in TAKES}


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
