"""conformer-fast cache."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines import cache


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch):
    """One of OpenVINO, with its weights, and one as TensorRT writes them."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="openvino", precision="fp32")
    fast(torch.zeros(1, 3, 64, 96))
    fields = {"backend": "tensorrt", "precision": "fp16", "targets": ["sm89", "sm120"]}
    cache.cached(fields, lambda: b"engine")


def test_engines_of_both_kinds_are_listed(run, run_json):
    status, out, err = run("cache", "list")
    first, head, *rows = out.splitlines()
    assert (status, err) == (0, "")
    assert first.startswith("3 entries, ")
    assert first.endswith(f"in {cache.engines_folder()}")
    assert head.split() == ["key", "backend", "precision", "for", "MB", "last", "used"]
    assert {tuple(row.split()[1:4]) for row in rows} == {
        ("openvino", "fp32", "64x96"),
        ("openvino", "fp32", "weights"),
        ("tensorrt", "fp16", "sm89,sm120"),
    }
    status, result, _ = run_json("cache", "list")
    entries = {entry.key: entry for entry in cache.cached_engines()}
    assert status == 0
    assert {entry["key"]: entry["bytes"] for entry in result["engines"]} == {
        key: entry.size for key, entry in entries.items()
    }
    assert all(entry["fields"] == dict(entries[entry["key"]].fields) for entry in result["engines"])
    assert {row.split()[0] for row in rows} == {key[:8] for key in entries}
    assert result["bytes"] == sum(entry.size for entry in entries.values())


def test_clear_says_what_it_freed(run, run_json):
    freed = sum(entry.size for entry in cache.cached_engines())
    status, result, err = run_json("cache", "clear")
    assert (status, err, result["folder"]) == (0, "", str(cache.engines_folder()))
    assert result["freed_bytes"] >= freed
    assert run_json("cache", "list")[1]["engines"] == []
    assert run("cache", "clear") == (0, f"freed 0.0 MB in {cache.engines_folder()}\n", "")
