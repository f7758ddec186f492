"""The reference detector against the recorded outputs of the official fork's, computed by mmdetection in float64."""

from __future__ import annotations

import goldens
import numpy as np
import pytest
import torch
from detector_samples import filled, image

from conformer_fast.model.detector.boxes import overlaps
from conformer_fast.model.detector.config import detector_config
from conformer_fast.model.detector.detect import regions_of
from conformer_fast.model.detector.reference import Detector

DOUBLE = torch.float64
CHANNELS, DELTAS = 32, 3  # every so-many-th channel of the maps and of the deltas is recorded


@pytest.fixture(scope="module", params=["192x256", "250x350"])
def recorded(request) -> dict[str, np.ndarray]:
    """One run: what is recorded of it, and its size."""
    stored = np.load(goldens.DATA / "detector.npz")
    found = {key.split("/")[1]: stored[key] for key in stored.files if key.startswith(request.param)}
    return {**found, "size": tuple(map(int, request.param.split("x")))}


@pytest.fixture(scope="module")
def detector() -> Detector:
    return filled(detector_config("mask-rcnn"), DOUBLE)


@pytest.fixture(scope="module")
def proposed(recorded, detector):
    with torch.no_grad():
        return detector.propose(image(*recorded["size"], DOUBLE)[0])


def test_parameters_are_those_of_the_published_detectors():
    for name, count in (("mask-rcnn", 58_068_464), ("faster-rcnn", 55_425_184)):
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in Detector(detector_config(name)).parameters()) == count


def test_maps_and_regions(recorded, proposed):
    for level, (feature_map, values) in enumerate(zip(*proposed, strict=True)):
        assert goldens.error(feature_map[0, ::CHANNELS], recorded[f"fpn{level}"]) < goldens.TOLERANCE[DOUBLE]
        assert goldens.error(values[0, :3], recorded[f"rpn_cls{level}"]) < goldens.TOLERANCE[DOUBLE]
        assert goldens.error(values[0, 3::DELTAS], recorded[f"rpn_reg{level}"]) < goldens.TOLERANCE[DOUBLE]


def test_proposals_are_the_same_one_by_one(recorded, proposed, detector):
    _, (size,) = image(*recorded["size"])
    boxes, scores = regions_of([values[0] for values in proposed.regions], size, detector.config)
    same_boxes(boxes, scores, recorded["proposals"])


@pytest.mark.slow
def test_detections_are_the_same_one_by_one(recorded, detector):
    images, sizes = image(*recorded["size"], DOUBLE)
    with torch.no_grad():
        (found,) = detector(images, sizes)
    same_boxes(found.boxes, found.scores, recorded["boxes"])
    assert found.labels.tolist() == recorded["labels"].tolist()
    width = recorded["size"][1]
    expected = np.unpackbits(recorded["masks"], axis=2)[:, :, :width].astype(bool)
    assert (found.masks[: len(expected)].numpy() == expected).mean() > 0.999


def same_boxes(boxes, scores, expected):
    """expected: (N, 5), x1 y1 x2 y2 score, in the same order."""
    assert len(boxes) == len(expected)
    expected = torch.from_numpy(expected).double()
    assert overlaps(boxes, expected[:, :4]).diagonal().min() > 0.999
    assert (scores - expected[:, 4]).abs().max() < 1e-5
