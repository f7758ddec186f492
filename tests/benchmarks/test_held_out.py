"""Held-out accuracy: which paths are asked for, and one table of several CPUs' rows."""

import json

import pytest

pytest.importorskip("openvino")

from benchmarks import held_out, render


def test_unknown_implementations_are_refused(tmp_path):
    kept = tmp_path / "held_out.json"
    kept.write_text("kept")
    with pytest.raises(SystemExit, match="no implementation cuda; there are reference, native, openvino"):
        held_out.main(kept, ["native", "cuda"])
    assert kept.read_text() == "kept"


def test_rows_of_several_cpus(tmp_path, monkeypatch):
    """The first CPU's rows stand where no other has measured, in the order of the fullest file."""
    first = {"reference fp32": 1, "openvino fp32": 2, "openvino bf16": 3, "kernels fp16": 4}
    other = {"openvino fp32": 5, "openvino bf16": None, "native int8": 6}
    for folder, rows in (("z", first), ("a", other)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "held_out.json").write_text(json.dumps({"rows": [*map(_row, rows.items())]}))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "FIRST", tmp_path / "z")
    found = {f"{row['implementation']} {row['precision']}": row.get("correct") for row in render.held_out_rows()}
    assert [*found.items()] == [
        ("reference fp32", 1),
        ("openvino fp32", 5),
        ("openvino bf16", 3),
        ("kernels fp16", 4),
        ("native int8", 6),
    ]


def _row(item):
    path, correct = item
    implementation, precision = path.split()
    row = {"model": "digits", "implementation": implementation, "precision": precision}
    return row | ({"missing": "why"} if correct is None else {"correct": correct})
