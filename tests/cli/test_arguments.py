"""What the commands share: models and engines as they were asked for."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.checkpoints import download
from conformer_fast.cli import arguments
from conformer_fast.engines.base import Precisions
from conformer_fast.model.names import IN_8_BITS, PRECISIONS
from conformer_fast.model.precision import DTYPES, FORMATS
from conformer_fast.tables import Column, Table


def test_the_names_are_those_of_the_types():
    assert set(PRECISIONS) == {*DTYPES, *FORMATS}
    assert set(IN_8_BITS) == set(FORMATS)


def test_an_engine_of_certain_shapes_is_built_for_what_it_will_get(monkeypatch):
    asked = []
    monkeypatch.setattr(cf, "compile", lambda model, **options: asked.append(options))
    monkeypatch.setattr(cf.TensorRT, "missing", lambda self: None)
    monkeypatch.setattr(cf.TensorRT, "precisions", lambda self: Precisions(("fp16",), ("int8",)))
    asked_for = {"model": "digits", "weights": "packaged", "size": 96, "backend": "tensorrt"}
    others = ("precision", "quantization", "calibration", "calibration_limit", "key")
    arguments.compiled(Namespace(**asked_for, **dict.fromkeys(others)), batch=4)
    shapes = cf.Shapes((1, 4, 4), (96, 96, 96), (96, 96, 96))
    assert asked == [{"backend": cf.TensorRT(shapes), "precision": "auto", "quantization": None}]


@pytest.mark.parametrize(
    ("model", "weights", "taken"),
    [
        (None, None, ("small-p16", "pretrained")),
        ("tiny-p16", None, ("tiny-p16", "pretrained")),
        ("digits", None, ("digits", "packaged")),
        (None, "pretrained", ("small-p16", "pretrained")),
        ("digits", "some.pth", ("digits", "some.pth")),
    ],
)
def test_the_model_and_its_weights(monkeypatch, model, weights, taken):
    asked = []
    monkeypatch.setattr(cf, "create_model", lambda *given, features_only: asked.append((*given, features_only)))
    options = Namespace(model=model, weights=weights)
    arguments.model_of(options, features_only=True)
    assert asked == [(*taken, True)]
    assert (options.model, options.weights) == taken


def test_a_model_may_be_called_as_the_official_repository_calls_it(capsys):
    parser = ArgumentParser()
    arguments.add_model(parser)
    arguments.add_models(parser)
    options = parser.parse_args(["--model", "Conformer_small_patch32", "--models", "conformer_base_patch16", "digits"])
    assert (options.model, options.models) == ("small-p32", ["base-p16", "digits"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--model", "Conformer_small_patch32_384"])
    assert "invalid choice: 'Conformer_small_patch32_384'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("predict absent.jpg gone.jpg", "there is no file or folder absent.jpg, gone.jpg; name where the pictures are"),
        ("predict absent.jpg there.jpg", None),  # one is enough to work on
        ("evaluate --data absent", "there is no file or folder absent; name"),
        ("evaluate --data absent-{0..3}.tar", "there is no file or folder absent-{0..3}.tar; name"),
        ("evaluate --data th*.jpg", None),
        ("evaluate --data . --labels absent", "there is no file absent"),
        ("calibrate --data absent -o q.json", "there is no file or folder absent; name"),
        ("diff --images there.jpg absent.jpg", "there is no file absent.jpg"),
        ("diff", None),
    ],
)
def test_pictures_are_looked_for_before_a_download(run, tmp_path, monkeypatch, command, refused):
    monkeypatch.chdir(tmp_path)
    Path("there.jpg").touch()
    fetched = []

    def fetch(variant):
        fetched.append(variant)
        raise cf.DownloadError("it is fetched")

    monkeypatch.setattr(download, "fetch", fetch)
    for weights in ([], ["--weights", "pretrained"]):
        status, out, err = run(*command.split(), "--model", "tiny-p16", *weights)
        assert (status, out) == (2, "")
        assert (refused or "it is fetched") in err
    assert fetched == ([] if refused else ["tiny-p16"] * 2)


@pytest.mark.parametrize("weights", ["--model digits", "--model tiny-p16 --weights random", "--bundle absent"])
@pytest.mark.parametrize("command", ["predict", "batch -o out.csv", "detect"])
def test_absent_pictures_are_told_before_any_work(run, tmp_path, monkeypatch, command, weights):
    monkeypatch.chdir(tmp_path)
    for work in ("create_model", "create_detector", "compile", "load"):
        monkeypatch.setattr(cf, work, lambda *_, **__: pytest.fail("worked first"))
    if command == "detect":
        weights = "--weights packaged" if "--model" in weights else weights
    for names in ("absent.jpg", "gone.png x{1..3}.png"):
        status, out, err = run(*command.split(), *names.split(), *weights.split())
        message = f"there is no file or folder {names.replace(' ', ', ')}; name where the pictures are"
        assert (status, out, err) == (2, "", f"conformer-fast {command.split()[0]}: {message}\n")


def test_results_are_shown_as_soon_as_they_are_known(capsys):
    class Row(int):
        TABLE = Table(Column("head"))

    show_row = arguments.row_by_row(Namespace(json=False))
    show_row(Row(1))
    assert capsys.readouterr().out == "head\n1\n"
    show_row(Row(2))
    assert capsys.readouterr().out == "2\n"
    arguments.row_by_row(Namespace(json=True))(Row(3))
    assert capsys.readouterr().out == ""
