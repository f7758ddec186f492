"""Counts as bytes: what they give back, and what is none."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from conformer_fast.calibration.counts import Counts
from conformer_fast.calibration.histograms import BINS, Histogram
from conformer_fast.calibration.image_facts import ImageFacts
from conformer_fast.errors import ArgumentError

POINTS = ("stem", "conv_1.conv1", "conv_1.conv3")
COUNTS = Counts(
    {name: Histogram(1.5 + index, np.full(BINS, 0.1 * index)) for index, name in enumerate(POINTS)},
    batches=4,
    images=9,
    pictures=ImageFacts(2, [[1.0, 2.0]], [-1.0, 3.0]),
)


def changed(tensors=None, **facts) -> bytes:
    kept = load(COUNTS.to_bytes())
    known = {**json.loads(kept["facts"].tobytes()), **facts}
    return save({**kept, "facts": np.frombuffer(json.dumps(known).encode(), np.uint8), **(tensors or {})})


def weights(value: float) -> np.ndarray:
    return np.full((len(POINTS), BINS), value)


def test_they_survive():
    found = Counts.from_bytes(COUNTS.to_bytes(), POINTS, 4)
    assert (found.batches, found.images, found.pictures) == (4, 9, COUNTS.pictures)
    assert found.ranges("int8") == COUNTS.ranges("int8")
    found.histograms["stem"].weights += 1  # they are counted on


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK something",
        COUNTS.to_bytes()[:-1],
        save({"facts": np.frombuffer(b"[" * 100_000, np.uint8), "largest": np.zeros(0), "weights": np.zeros(0)}),
        save({"facts": np.frombuffer(b"{}", np.uint8), "largest": np.zeros(0), "weights": np.zeros((0, BINS))}),
        changed({"weights": weights(np.nan)}),
        changed({"weights": weights(-1.0)}),
        changed({"weights": weights(1.0).astype(np.float32)}),
        changed({"weights": weights(1.0)[:, 1:]}),
        changed({"largest": np.array([1.0, np.inf, 2.0])}),
        changed({"largest": np.array([1.0, 1e300, 2.0])}),
        changed({"largest": np.ones(4)}),
        changed(points=["stem", "conv_1.conv1", "no.such"]),
        changed(points=["stem", "stem", "conv_1.conv1"]),
        changed(points=[["stem"], {}, 3]),
        changed(batches=5),
        changed(batches=-1),
        changed(batches=1.5),
        changed(images="many"),
        changed(pictures=None),
        changed(pictures={"flat": 0, "distinct": [3], "extent": None}),
    ],
)
def test_what_is_none(content):
    with pytest.raises(ArgumentError, match="no counts"):
        Counts.from_bytes(content, POINTS, 4)
