"""conformer-fast bench."""

from __future__ import annotations

import pytest

import conformer_fast as cf

ARGUMENTS = ("bench", "--models", "digits", "--batch", "1", "2", "--rounds", "2", "--backend")


def test_a_row_for_each_batch(run, run_json):
    status, result, err = run_json(*ARGUMENTS, "reference")
    assert (status, err) == (0, "")
    assert [(row["model"], row["batch"], row["size"]) for row in result["rows"]] == [
        ("digits", 1, 64),
        ("digits", 2, 64),
    ]
    for row in result["rows"]:
        assert (row["backend"], row["precision"], row["device"]) == ("reference", "fp32", "cpu")
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["compiled_ms"] * 1e3)
    status, out, _ = run(*ARGUMENTS, "reference", "--size", "32")
    head, *rows, last = out.splitlines()
    assert status == 0
    assert head.split()[:2] == ["model", "batch"]
    assert [row.split()[:2] for row in rows] == [["digits", "1"], ["digits", "2"]]
    assert last.endswith(" threads, images of 32x32, on cpu")


def test_a_quantization_is_used(run_json, tmp_path, monkeypatch):
    given, seen = cf.Quantization("int8", {"conv_1.conv1": 2.0}), []
    row = cf.Benchmark("digits", 1, 64, "openvino", "int8", "cpu", 2, 2.0, 1.0, 2.0)

    def benchmark(models, batches, **options):
        seen.append((models, batches, options["precision"], options["quantization"]))
        return [row]

    monkeypatch.setattr(cf, "benchmark", benchmark)
    arguments = ("--precision", "int8", "--quantization", given.save(tmp_path / "q.json"))
    assert run_json("bench", "--models", "digits", *arguments)[0] == 0
    assert run_json("bench", "--models", "digits", "--precision", "int8")[0] == 0
    assert seen == [(["digits"], [1, 8], "int8", given), (["digits"], [1, 8], "int8", None)]
