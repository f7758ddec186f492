"""The commands that take pictures take them from anywhere: files, folders, patterns, standard input and addresses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from data_samples import picture, write
from detector_samples import write_weights
from picture_site import PUBLIC, names_of, site

import conformer_fast as cf

DIGITS = ("--model", "digits", "--backend", "reference")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with pictures, and one on the standard input."""
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture(70))))
    return write(tmp_path, {f"{name}.png": picture(50 * int(name[-1])) for name in ("1", "a/2", "b/3")})


@pytest.fixture
def server():
    with site() as found:
        found.sends("/4.png", picture(200))
        found.sends("/gone.png", b"", 404)
        yield found


@pytest.fixture
def sources(server) -> list[str]:
    """One of each kind, and the last two with nothing there."""
    return ["1.png", "a", "b/*.png", "-", f"{server.url}/4.png", f"{server.url}/gone.png", "absent.png"]


def called(sources: list[str]) -> list[str]:
    """The pictures of those that are there."""
    return ["1.png", "a/2.png", "b/3.png", "-", sources[4]]


def test_predict(run_json, place, sources):
    status, result, err = run_json("predict", *sources, *DIGITS, "--topk", 1)
    assert status == 1
    assert [one["path"] for one in result["pictures"]] == called(sources)
    gone, absent = result["damaged"]
    assert gone["error"] == f"{sources[5]}: the server says 404 Not Found; is the address right?"
    assert (gone["path"], absent["path"]) == (sources[5], "absent.png")
    assert err == "".join(f"conformer-fast predict: {one['error']}\n" for one in (gone, absent))


def test_where_a_picture_is_drawn_is_in_the_json(run_json, place):
    _, result, _ = run_json("predict", "1.png", "b", *DIGITS, "--save", "out")
    assert [one["saved"] for one in result["pictures"]] == ["out/1.predicted.png", "out/3.predicted.png"]
    _, result, _ = run_json("predict", "1.png", *DIGITS)
    assert "saved" not in result["pictures"][0]


def test_each_way_gives_the_same(run_json, place, server, monkeypatch):
    content = (place / "1.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    server.sends("/1.png", content)
    _, result, _ = run_json("predict", "1.png", "-", f"{server.url}/1.png", *DIGITS)
    file, piped, fetched = (one["top"] for one in result["pictures"])
    assert file == piped == fetched


@pytest.mark.slow
def test_detect(run_json, place, sources):
    weights = write_weights(place / "detector.safetensors")
    status, result, _ = run_json("detect", *sources, "--weights", weights, "--backend", "reference")
    assert status == 1
    assert [one["path"] for one in result["pictures"]] == called(sources)
    assert [one["path"] for one in result["damaged"]] == sources[5:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batch(run_json, place, sources, workers):
    """Also by processes of its own, which have no such standard input."""
    line = ("batch", *sources, *DIGITS, "--workers", workers, "--batch", 2, "-o", "out.jsonl")
    status, result, _ = run_json(*line)
    rows = list(map(json.loads, (place / "out.jsonl").read_text().splitlines()))
    assert (status, result["kind"], result["pictures"]) == (1, "named", 7)
    assert [row["picture"] for row in rows if row["error"] is None] == called(sources)
    assert [one["picture"] for one in result["damaged"]] == sources[5:]


def test_a_batch_goes_on_with_the_same_picture_alone(run, place, monkeypatch):
    line = ("batch", "-", "1.png", *DIGITS, "--workers", 0, "--batch", 1, "-o", "out.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("conformer_fast.bulk.batch._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*line)[0] == 130
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture(71))))
    status, _, err = run(*line)
    assert (status, "out.jsonl.part is of another run" in err) == (2, True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture(70))))
    assert run(*line)[0] == 0


def test_calibrate(run_json, run, place, sources):
    line = ("calibrate", "--model", "digits", "--no-smoothquant", "-o", "q.json", "--data")
    status, result, _ = run_json(*line, *sources[:5])
    assert (status, result["images"]) == (0, 5)
    for source, message in ((sources[5], "the server says 404"), ("absent.png", "absent.png: cannot be read (No such")):
        status, _, err = run(*line, "1.png", source)
        assert (status, message in err) == (2, True)
    status, _, err = run(*line, "a", "b", "--labels-from-folders", "--max-drop", 1)
    assert (status, "labels are of one folder, tar or parquet file, and --data names 2\n" in err) == (2, True)


def test_calibrate_of_a_detector(run_json, place, sources, monkeypatch):
    given = []
    found = cf.Quantization("int8", {}, {}, {"images": 5})
    monkeypatch.setattr(cf, "calibrate", lambda _, images, **__: given.append(images) or found)
    weights = write_weights(place / "detector.safetensors")
    run_json("calibrate", "--weights", weights, "--data", *sources[:5], "-o", "q.json")
    assert [one.name for one in given[0].pictures] == called(sources)


@pytest.mark.parametrize("command", ["predict", "batch", "calibrate"])
def test_a_standard_input_without_a_picture_is_no_work(run, place, monkeypatch, command):
    line = {"predict": (), "batch": ("-o", "o.csv"), "calibrate": ("-o", "q.json")}[command]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    engine = ("--backend", "reference") if command != "calibrate" else ()
    data = ("--data", "-") if command == "calibrate" else ("-",)
    status, out, err = run(command, *data, "--model", "digits", *engine, *line)
    assert (status, out) == (2, "")
    assert err.startswith(f"conformer-fast {command}: the standard input, -, is empty; send a picture there, such as")


def test_what_is_no_address_costs_itself(run, place):
    """Also where its picture would be saved under its name."""
    status, out, err = run("predict", "1.png", "http://[x/a.png", *DIGITS, "--save", "out")
    assert (status, "1.png" in out, "is no address of http or https" in err) == (1, True, True)
    assert [path.name for path in (place / "out").iterdir()] == ["1.predicted.png"]


@pytest.mark.parametrize("command", ["predict", "batch -o out.csv"])
def test_only_http_and_https_are_fetched(run, place, command):
    status, out, err = run(*command.split(), "ftp://host/7.png", *DIGITS)
    assert (status, out) == (2, "")
    assert "ftp://host/7.png: only http and https addresses are fetched, not ftp; download the picture yourself" in err


def test_offline(run, place, server, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    status, out, err = run("predict", f"{server.url}/4.png", *DIGITS)
    assert (status, out, server.asked) == (1, "", [])
    assert "CONFORMER_FAST_OFFLINE is set, and nothing is fetched; download the picture yourself and name the fi" in err


def test_no_redirect_to_what_this_machine_alone_reaches(run, place, server, monkeypatch):
    names_of(monkeypatch, server, cats_test=PUBLIC)
    server.redirects("/cat.png", f"{server.url}/4.png")
    status, out, err = run("predict", "http://cats.test/cat.png", *DIGITS)
    assert (status, out) == (1, "")
    assert "which is this machine or in its own network" in err


def test_an_address_is_worth_a_download(run, monkeypatch):
    """As a pattern is: whether there is a picture is found later."""
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: (_ for _ in ()).throw(cf.DownloadError("asked for")))
    for name in ("http://a.test/a.png", "https://a.test"):
        assert run("predict", name, "--model", "tiny-p16")[2] == "conformer-fast predict: asked for\n"
