"""Boxes, by arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch

import conformer_fast as cf
from conformer_fast.model.detector.boxes import BOX_STDS, REGION_STDS, anchors, moved, overlaps
from conformer_fast.model.detector.config import DetectorConfig, detector_config
from conformer_fast.model.detector.masks import pasted


def test_anchors():
    found = anchors(2, 3, 4, like=torch.zeros(1, dtype=torch.float64))
    assert found.shape == (18, 4)
    assert found[1].tolist() == [-16, -16, 16, 16]  # the square one of the first pixel: 8 strides
    assert found[4].tolist() == [-12, -16, 20, 16]  # of the next pixel in the row
    wide, tall = found[9], found[11]  # of the first pixel of the second row
    assert (wide[2] - wide[0]) / (wide[3] - wide[1]) == pytest.approx(2)
    assert (tall[2] - tall[0]) / (tall[3] - tall[1]) == pytest.approx(0.5)
    assert (wide[1] + wide[3]) / 2 == 4


def test_moved():
    box = torch.tensor([10.0, 20.0, 30.0, 60.0], dtype=torch.float64)  # 20 x 40 around (20, 40)
    deltas = torch.tensor([0.5, -0.25, math.log(2), math.log(0.5)], dtype=torch.float64)
    assert moved(box, deltas, REGION_STDS, 1000, 1000).tolist() == pytest.approx([10, 20, 50, 40])
    scaled = deltas / torch.tensor(BOX_STDS, dtype=torch.float64)
    assert moved(box, scaled, BOX_STDS, 1000, 1000).tolist() == pytest.approx([10, 20, 50, 40])
    assert moved(box, deltas, REGION_STDS, 33, 44).tolist() == pytest.approx([10, 20, 44, 33])
    far = torch.tensor([-9.0, -9.0, 50.0, 50.0], dtype=torch.float64)
    assert moved(box, far, REGION_STDS, 1000, 1000).tolist() == pytest.approx([0, 0, 465, 930])  # grown 62.5 times


def test_overlaps():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    assert overlaps(boxes, boxes)[0].tolist() == pytest.approx([1, 1 / 3, 0])


def test_masks_are_pasted_into_their_boxes():
    shares = torch.ones(3, 28, 28)
    shares[1, :, 14:] = 0
    boxes = torch.tensor([[2.0, 3.0, 6.0, 9.0], [0.0, 0.0, 20.0, 10.0], [4.0, 4.0, 4.0, 9.0]])
    whole, half, empty = pasted(shares, boxes, 12, 20)
    assert whole.nonzero().min(0).values.tolist() == [3, 2]
    assert whole.nonzero().max(0).values.tolist() == [8, 5]
    assert int(whole.sum()) == 24
    assert half[:10, :10].all()
    assert not half[:, 10:].any()
    assert not empty.any()


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 0},
        {"num_classes": 1 << 30},
        {"channels": 1.5},
        {"masks": 1},
        {"min_score": 2.0},
        {"min_score": 1},
        {"backbone": cf.ConformerConfig(depth=3)},
        {"backbone": cf.ConformerConfig(patch_size=64)},
        {"backbone": "small-p32"},
    ],
    ids=str,
)
def test_sizes_that_cannot_be(change):
    with pytest.raises(cf.ArgumentError):
        DetectorConfig(**{"backbone": cf.VARIANTS["small-p32"], **change})


def test_names():
    config = detector_config("faster-rcnn", "base-p16", num_classes=3)
    assert (config.masks, config.num_classes, config.backbone) == (False, 3, cf.VARIANTS["base-p16"])
    with pytest.raises(cf.ArgumentError, match="choose one of mask-rcnn, faster-rcnn"):
        detector_config("retinanet")
