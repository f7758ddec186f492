"""kill -9 at random moments of what writes files: saves, the engine cache, what goes on after a break, downloads.

What is killed is in tests/killed.py. `make hostile` kills 2,000 saves.
"""

import hashlib
import os
from collections import Counter

import numpy as np
import pytest
from effort import EFFORT
from manifest_samples import FILES, MANIFEST
from own_process import run
from PIL import Image
from weights_site import CONTENT, NAME, Site

from conformer_fast.bundles.folder import check_writable, write_bundle

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks"), pytest.mark.slow]
KILLED = "killed.py"


def test_saves(tmp_path, tried):
    """Four writers and eight readers of one bundle."""
    folder = tmp_path / "bundle"
    found = run(KILLED, "saves", folder, 50 * EFFORT)
    assert found["killed while saving"] > 0
    tried("kill -9 of saves over a bundle that others read", found)
    check_writable(folder)  # what the killed have left is no stranger's
    write_bundle(folder, MANIFEST, FILES)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *FILES}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_engine_cache(tmp_path, tried, monkeypatch):
    """Three that use it and one that lists and clears it; half of the engines have room."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    found = run(KILLED, "cache", 50 * EFFORT)
    assert found["killed while writing"] > 0
    tried("kill -9 of those who use the engine cache", found)


@pytest.mark.parametrize(
    ("workers", "kills"),
    [(0, 15 + 5 * EFFORT), pytest.param(2, 10 + EFFORT, marks=pytest.mark.skipif(EFFORT == 1, reason="takes minutes"))],
)
def test_evaluations(tmp_path, tried, workers, kills):
    choice = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "data" / str(index % 10) / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(choice.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    found = run(KILLED, "evaluate", tmp_path / "data", tmp_path / "state", workers, kills)
    assert found["killed between batches"] > 0
    tried(f"kill -9 of evaluate --resume, {workers} decoding processes", found)


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet"])
def test_batches(tmp_path, tried, form):
    if form == ".parquet":
        pytest.importorskip("pyarrow")
    choice = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for index in range(14):
        Image.fromarray(choice.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"data/{index:02}.png")
    (tmp_path / "data" / "05.png").write_bytes(b"not an image")
    found = run(KILLED, "batch", tmp_path / "data", tmp_path / f"out{form}", 30 + 10 * EFFORT)
    assert found["killed while writing rows"] >= 8  # each half of a line, and of every batch
    assert found["killed while writing results"] >= 14
    assert found["killed when all was there"] >= 1
    tried(f"kill -9 of batch, written as {form}", found)


def test_downloads(tmp_path, tried, monkeypatch):
    site = Site()
    site.pause = 0.002
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", site.url)
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("no_proxy", "*")
    found = run(KILLED, "download", NAME, 50 * EFFORT)
    site.server.shutdown()
    site.server.server_close()
    had = found.pop("had")
    assert Counter(site.ranges) <= Counter(f"bytes={size}-" if size else None for size in had)
    assert found["killed with a part"] > 0
    tried("kill -9 of downloads", found)
