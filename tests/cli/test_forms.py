"""What predict and detect print: text, JSON, JSON lines or CSV; and what they draw."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from data_samples import picture, write
from detector_samples import write_weights
from picture_site import site
from PIL import Image

from conformer_fast.deploy import predict

DIGITS = ("--model", "digits", "--backend", "reference")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with two pictures, between them a damaged one with a name of CSV's."""
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, {"data/a.png": picture(30), 'data/b,"\n=1+1.png': b"no picture", "data/c.png": picture(90)})


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_are_those_of_batch(run, place, form):
    """But for the names, which are as they were given."""
    status, out, err = run("predict", "data", *DIGITS, "--format", form, "--topk", 3)
    assert (status, err.count("\n")) == (1, 1)
    written = f"out.{form}"
    assert run("batch", "data", *DIGITS, "--workers", 0, "--topk", 3, "-o", written)[0] == 1
    if form == "jsonl":
        ours, theirs = (list(map(json.loads, text.splitlines())) for text in (out, Path(written).read_text()))
    else:
        ours, theirs = (list(csv.DictReader(io.StringIO(text))) for text in (out, Path(written).read_text()))
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        other["picture"] = f"data/{other['picture']}"
        other["error"] = other["error"] and f"data/{other['error']}"
        for row in (one, other):
            for name, value in row.items():
                row[name] = pytest.approx(value, abs=1e-6) if name == "probabilities" else value
                row[name] = value[:6] if name.startswith("probability") else row[name]
        assert one.keys() == other.keys()
        assert {name: str(value) for name, value in one.items()} == {name: str(value) for name, value in other.items()}


def test_json_by_both_names(run, place):
    line = ("predict", "data/a.png", *DIGITS)
    asked = [run(*line, *more)[1] for more in (["--json"], ["--format", "json"], ["--format=json", "--json"])]
    assert asked[0] == asked[1] == asked[2]
    assert json.loads(asked[0])["result"]["pictures"]
    status, out, err = run(*line, "--json", "--format", "csv")
    assert (status, json.loads(out)["error"]["type"]) == (2, "ArgumentError")
    assert "--json is --format json, and --format csv was given too; leave one out\n" in err
    for more in (["--format", "json"], ["--format=json"]):
        status, out, _ = run("predict", "data/a.png", "--model", "digits", "--bundle", "absent", *more)
        assert (status, json.loads(out)["command"]) == (2, "predict")
    status, out, _ = run(*line, "--format", "xml")
    assert (status, out) == (2, "")
    assert run(*line, "--format", "text") == run(*line)


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
def test_a_row_is_printed_when_it_is_known(run, place, monkeypatch, form):
    whole = predict.predicted

    def stopping(*given, **more):
        yield next(whole(*given, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predicted", stopping)
    status, out, _ = run("predict", "data", *DIGITS, "--format", form)
    assert (status, "data/a.png" in out) == (130, True)


@pytest.mark.slow
def test_rows_of_detect(run, place):
    weights = write_weights(place / "detector.safetensors")
    line = ("detect", "data", "--weights", weights, "--backend", "reference", "--min-score", 0.46, "--format")
    status, out, err = run(*line, "jsonl")
    first, damaged, _ = map(json.loads, out.splitlines())
    assert (status, err.count("\n")) == (1, 1)
    assert list(first) == ["picture", "width", "height", "objects", "error"]
    assert (first["picture"], first["width"], first["error"]) == ("data/a.png", 20, None)
    assert damaged["picture"] == 'data/b,"\n=1+1.png'
    assert (damaged["objects"], "not an image" in damaged["error"]) == ([], True)
    status, out, _ = run(*line, "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 1
    assert list(rows[0]) == [
        *(["picture", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2", "error"])
    ]
    objects = [row for row in rows if row["picture"] == "data/a.png"]
    assert len(objects) == max(1, len(first["objects"]))
    for row, one in zip(objects, first["objects"], strict=False):
        assert (int(row["class"]), row["label"], float(row["score"])) == (one["index"], one["label"], one["score"])
        assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == one["box"]
    assert [row["error"] for row in rows if row["error"]] == [damaged["error"]]
    _, out, _ = run(*line[:-2], 1, "--format", "csv")  # nothing is so sure: a row a picture all the same
    assert [row["picture"] for row in csv.DictReader(io.StringIO(out))][::2] == ["data/a.png", "data/c.png"]


def test_predict_draws(run, run_json, place, monkeypatch):
    """Over nothing that is there. What is on the standard input and at an address has a name too."""
    Image.new("RGB", (200, 150), (1, 2, 3)).save("large.png")
    status, out, err = run("predict", "large.png", *DIGITS, "--topk", 1, "--save", "found.jpg")
    assert (status, err) == (0, "")
    assert out.splitlines()[2] == "  drawn in found.jpg"
    drawn = Image.open("found.jpg")
    assert (drawn.format, drawn.size) == ("JPEG", (200, 150))
    corner = drawn.crop((0, 0, 60, 20)).getcolors(9999)
    assert max(color[0] for _, color in corner) > 200  # bright, behind the name
    assert Image.open("large.png").getcolors() == [(200 * 150, (1, 2, 3))]
    before = Path("found.jpg").read_bytes()
    status, _, err = run("predict", "large.png", *DIGITS, "--save", "found.jpg")
    assert (status, "holds pictures, and no command writes over such files" in err) == (2, True)
    assert Path("found.jpg").read_bytes() == before
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture(4))))
    with site() as server:
        for path in ("/x/cat.png?a=b", "/"):
            server.sends(path, picture(5))
        line = ("predict", "data", "-", f"{server.url}/x/cat.png?a=b", f"{server.url}/", *DIGITS, "--save")
        assert run_json(*line, "drawn")[0] == 1
        names = ["a", "c", "cat", "picture", "stdin"]
        assert sorted(path.name for path in Path("drawn").iterdir()) == [f"{name}.predicted.png" for name in names]
    Path("drawn/a.predicted.png").write_bytes(b"precious")
    status, _, err = run("predict", "data/a.png", *DIGITS, "--save", "drawn")
    message = "drawn/a.predicted.png is there already, and no command writes over pictures; give --save another\n"
    assert (status, err) == (2, f"conformer-fast predict: {message}")
    assert Path("drawn/a.predicted.png").read_bytes() == b"precious"


def test_what_cannot_be_drawn(run, place):
    line = ("predict", "data/a.png", "data/c.png", *DIGITS, "--save")
    for out, message in (
        ("all.png", "2 pictures are drawn into a folder; give --save one, not all.png"),
        ("all.gif", "--save writes .png, .jpg, .jpeg files, or into a folder, got all.gif"),
        ("-", "--save writes .png"),
    ):
        status, printed, err = run(*line, out)
        assert (status, printed, message in err) == (2, "", True)
    status, _, err = run("predict", "data/a.png", *DIGITS, "--save", "data/a.png")
    assert (status, "data/a.png is the file data/a.png, which is read and would be lost" in err) == (2, True)
    status, _, err = run("predict", "data/a.png", *DIGITS, "--weights", "random", "--save", "r.png")
    assert (status, Path("r.png").exists()) == (2, False)
    assert "random weights find nothing to draw; leave out --save" in err


def test_random_weights_are_said_beside_each_picture(run, place):
    _, out, _ = run("predict", "data/a.png", *DIGITS, "--weights", "random", "--topk", 1)
    assert out.splitlines()[0] == "data/a.png (random weights: the classes mean nothing)"
