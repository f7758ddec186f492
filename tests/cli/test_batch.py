"""conformer-fast batch, with models and with bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.bulk.journal import Journal

DIGITS = ("--model", "digits", "--backend", "reference", "--workers", "0")


@pytest.fixture
def data(digit_files, tmp_path) -> Path:
    """Ten digits, 0 ... 9, and a damaged picture behind them."""
    (tmp_path / "data").mkdir()
    for index, path in enumerate(digit_files[:10]):
        (tmp_path / "data" / f"{index}.png").write_bytes(Path(path).read_bytes())
    (tmp_path / "data" / "a.png").write_bytes(b"not an image")
    return tmp_path / "data"


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_for_people(run, data, tmp_path):
    status, out, err = run("batch", data, "-o", tmp_path / "out.jsonl", *DIGITS, "--topk", 2)
    assert status == 1
    assert err.startswith("conformer-fast batch: a.png: empty, damaged or not an image; the formats are JPEG, ")
    assert err.count("\n") == 1
    assert out.splitlines()[0] == "reference fp32: its precision here"
    assert out.splitlines()[1].startswith(
        f"{tmp_path / 'out.jsonl'}: 11 pictures of {data} (folder), 1 damaged; 64x64, batches of 32; "
    )
    written = rows(tmp_path / "out.jsonl")
    assert [row["picture"] for row in written] == [*(f"{digit}.png" for digit in range(10)), "a.png"]
    assert [row["labels"][:1] for row in written] == [*([str(digit)] for digit in range(10)), []]
    assert {len(row["classes"]) for row in written} == {0, 2}


def test_for_programs(run_json, data, tmp_path):
    (data / "a.png").unlink()
    status, result, err = run_json("batch", data, "-o", tmp_path / "out.csv", *DIGITS, "--batch", 4)
    assert (status, err) == (0, "")
    assert (result["model"], result["weights"], result["bundle"]) == ("digits", "packaged", None)
    assert (result["out"], result["source"], result["kind"]) == (str(tmp_path / "out.csv"), str(data), "folder")
    assert (result["pictures"], result["went_on_from"], result["damaged"], result["batch"]) == (10, 0, [], 4)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 11


def test_it_goes_on_where_it_was_broken_off(run, run_json, data, tmp_path, monkeypatch):
    command = "batch", data, "-o", tmp_path / "out.jsonl", *DIGITS, "--batch", 4
    with monkeypatch.context() as patch:
        add, made = Journal.add, []

        def ending(journal, some):
            if made:
                raise KeyboardInterrupt
            made.append(add(journal, some))

        patch.setattr(Journal, "add", ending)
        status, out, err = run(*command)
    assert (status, out, err) == (130, "", "conformer-fast batch: interrupted\n")
    status, out, err = run(*command, "--topk", 3)
    assert (status, out) == (2, "")
    assert "out.jsonl.part is of another run: topk was 5 and is 3; give another output, or delete this file\n" in err
    status, result, _ = run_json(*command)
    assert (status, result["went_on_from"], result["pictures"]) == (1, 4, 11)
    assert [entry["picture"] for entry in result["damaged"]] == ["a.png"]
    assert len(rows(tmp_path / "out.jsonl")) == 11


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "out.txt must end in .jsonl, .csv or .parquet"),
        ("data/0.png", "0.png is there already; give another name, or delete it first"),
        ("absent/out.csv", "absent does not exist; create it first"),
        ("data", "data is a folder; give the name of a file"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(run, data, tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: pytest.fail("worked first"))
    before = (data / "0.png").read_bytes()
    status, out, err = run("batch", data, "-o", tmp_path / name, *DIGITS)
    assert (status, out) == (2, "")
    assert err.endswith(f"{message}\n")
    assert (data / "0.png").read_bytes() == before


def test_an_absent_source_is_found_before_a_download(run, tmp_path):
    status, out, err = run("batch", tmp_path / "absent", "-o", tmp_path / "out.csv", "--model", "tiny-p16")
    assert (status, out) == (2, "")
    assert "there is no file or folder" in err


def test_a_bundle(run, data, tmp_path):
    pytest.importorskip("openvino")
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="openvino", precision="fp32")
    bundle = fast.save(tmp_path / "bundle", labels=list("abcdefghij"))
    options = "--bundle", bundle, "--workers", 0
    status, out, _ = run("batch", data, "-o", tmp_path / "out.jsonl", *options)
    assert (status, out.splitlines()[0]) == (1, "openvino fp32: from bundle")
    assert [row["labels"][:1] for row in rows(tmp_path / "out.jsonl")] == [*([letter] for letter in "abcdefghij"), []]
    status, _, err = run("batch", data, "-o", tmp_path / "two.jsonl", *options, "--model", "digits")
    assert status == 2
    assert "--bundle says which model runs; leave out --model" in err
