"""Random weights: no command says a class by a name, which would look as if it meant something."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data_samples import picture
from serving_samples import PNG, running

import conformer_fast as cf
from conformer_fast.model.class_names import imagenet_labels, imagenet_synsets

RANDOM = ("--model", "tiny-p16", "--weights", "random", "--size", "32")
HERE = (*RANDOM, "--backend", "reference")
NAMES = re.compile(rf"\b({'|'.join(map(re.escape, imagenet_labels()))})\b")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """In a folder for each of two of ImageNet's classes."""
    for index, synset in enumerate(imagenet_synsets()[:2]):
        (tmp_path / "data" / synset).mkdir(parents=True)
        (tmp_path / "data" / synset / f"{index}.png").write_bytes(picture(100 * index))
    return tmp_path / "data"


def named(text: str) -> list[str]:
    return NAMES.findall(text)


def test_names_are_seen():
    assert named('1.2%  tench (0)\n{"label": "great white shark"}') == ["tench", "great white shark"]


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_predict(run, pictures, form):
    status, out, err = run("predict", *sorted(pictures.glob("*/*.png")), *HERE, "--topk", 1000, *form)
    assert (status, named(out + err)) == (0, [])
    assert len(set(re.findall(r"class \d+", out))) == 1000
    assert err == "conformer-fast predict: random weights: the predictions mean nothing\n"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_batch(run, pictures, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    status, printed, err = run("batch", pictures, *HERE, "--workers", 0, "--topk", 1000, "-o", out)
    assert (status, named(printed + err + out.read_text())) == (0, [])
    assert "class 999" in out.read_text()


def test_evaluate_still_knows_the_folders(run_json, pictures):
    """By their synsets, as of any model of ImageNet's classes."""
    status, values, err = run_json("evaluate", "--data", pictures, *HERE, "--workers", 0)
    assert (status, values["evaluated"], named(json.dumps(values) + err)) == (0, 2, [])


def test_serve(run, monkeypatch):
    """Whose page shows what the answers say."""
    served = []
    monkeypatch.setattr(cf, "serve", lambda fast, **_: served.append(fast))
    assert run("serve", *HERE)[0] == 0
    with running(served[0], size=32, max_batch=1) as client:
        status, answer = client.predict(picture(3), query="?topk=1000")
        explained = client.ask("POST", "/v1/explain", picture(3), PNG)[2].decode()
    assert (status, named(json.dumps(answer) + explained)) == (200, [])
    assert "class 17" in json.dumps(answer)
    assert re.search(r'"label": ?"class \d+"', explained)


@pytest.mark.slow
def test_what_is_saved_of_it(run, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    served = []
    monkeypatch.setattr(cf, "serve", lambda fast, **_: served.append(fast))
    assert run("serve", *RANDOM, "--backend", "openvino", "--precision", "fp32")[0] == 0
    folder = served[0].save(tmp_path / "bundle")
    assert cf.load(folder).labels[:2] == ("class 0", "class 1")
    assert named("".join(file.read_text() for file in folder.glob("*.txt"))) == []


def test_the_digits_have_no_names_either(run_json, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3))
    _, result, _ = run_json("predict", tmp_path / "a.png", "--model", "digits", "--weights", "random", "--topk", 99)
    (found,) = result["pictures"]
    assert {guess["label"] for guess in found["top"]} == {f"class {index}" for index in range(10)}
