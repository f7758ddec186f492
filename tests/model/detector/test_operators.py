"""RoIAlign and non-maximum suppression: each way of computing them against a loop, written as they are defined."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from conformer_fast.model.detector import operators
from conformer_fast.model.detector.operators import nms, roi_align

WAYS = ("extension", "plain", "torchvision")
REGIONS = torch.tensor(
    [
        [8.0, 4.0, 60.0, 40.0],
        [0.0, 0.0, 112.0, 88.0],
        [20.5, 30.25, 21.0, 31.0],  # less than a pixel of the map
        [5.0, 5.0, 5.0, 60.0],  # no width
        [-40.0, -30.0, 30.0, 20.0],
        [100.0, 80.0, 180.0, 140.0],
        [-300.0, -300.0, -200.0, -200.0],  # outside
    ]
)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "extension":
        if operators._C is None:
            pytest.skip("csrc/ was not built")
        return request.param
    monkeypatch.setattr(operators, "_C", None)
    found = (looped_nms, looped_roi_align) if request.param == "torchvision" else None
    monkeypatch.setattr(operators, "torchvision_ops", lambda: found)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stride", [4, 16])
def test_roi_align(way, dtype, stride):
    feature_map = torch.randn(3, 22, 28, generator=torch.Generator().manual_seed(0)).to(dtype)
    for layout in (feature_map, feature_map.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        found = roi_align(layout, REGIONS.to(dtype), stride, 7)
        expected = looped_roi_align(feature_map[None], [REGIONS.to(dtype)], 7, 1 / stride, 0, aligned=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found[6].abs().max() == 0


def test_no_regions(way):
    assert roi_align(torch.ones(3, 8, 8), torch.zeros(0, 4), 4, 14).shape == (0, 3, 14, 14)
    assert nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).shape == (0,)


@pytest.mark.slow
def test_nms(way):
    random = torch.Generator().manual_seed(1)
    corners = torch.rand(300, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(300, 2, generator=random) * 30], 1)
    scores = (torch.rand(300, generator=random) * 50).round() / 50  # many are equal
    groups = torch.randint(3, (300,), generator=random)
    for threshold in (0.0, 0.3, 0.7):
        found = nms(boxes, scores, groups, threshold)
        assert found.tolist() == looped_groups(boxes, scores, groups, threshold)
        assert 3 <= len(found) < 300


def test_gradients_take_the_plain_way():
    """Training a detector needs them; the extension has none."""
    feature_map = torch.randn(2, 9, 9, dtype=torch.float64, requires_grad=True)
    region = torch.tensor([[3.0, 2.0, 30.0, 25.0]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda values: roi_align(values, region, 4, 2), feature_map)
    assert roi_align(feature_map.float(), region.float(), 4, 2).requires_grad


def test_torchvision_is_found_and_a_broken_one_is_not(monkeypatch):
    for ops, expected in ((SimpleNamespace(nms=1, roi_align=2), (1, 2)), (None, None)):
        operators.torchvision_ops.cache_clear()
        monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(ops=ops))
        monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
        assert operators.torchvision_ops() == expected
    operators.torchvision_ops.cache_clear()


@pytest.mark.skipif(operators._C is None, reason="csrc/ was not built")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": np.zeros((2, 3), np.float32)}, r"boxes must have shape \(N, 4\)"),
        ({"regions": np.full((2, 4), np.nan, np.float32)}, "far from every map"),
        ({"regions": np.full((2, 4), 1e9, np.float32)}, "far from every map"),
        ({"feature_maps": [np.zeros((0, 4, 3), np.float32)]}, "none 0"),
        ({"feature_maps": []}, "there must be a map"),
        ({"feature_maps": [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.float32)]}, "the same channels"),
        ({"levels": np.array([0, 1])}, "a region is of level 1, there are 1 maps"),
        ({"levels": np.array([0, -1])}, "a region is of level -1, there are 1 maps"),
        ({"levels": np.zeros(3, np.int64)}, "levels must have shape"),
        ({"out": np.zeros((2, 7, 7, 2), np.float32)}, "out must have shape"),
        ({"out": np.zeros((2, 7, 6, 3), np.float32)}, "out must have shape"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_the_extension_refuses(change, message):
    given = {
        "feature_maps": [np.zeros((4, 4, 3), np.float32)],
        "levels": np.zeros(2, np.int64),
        "regions": np.zeros((2, 4), np.float32),
        "out": np.zeros((2, 7, 7, 3), np.float32),
        "threads": 1,
    }
    with pytest.raises(ValueError, match=message):
        operators._C.roi_align(**{**given, **change})
    with pytest.raises(TypeError):
        operators._C.roi_align(**{**given, "feature_maps": [np.zeros((4, 4, 3))]})  # float64
    boxes = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="one a box"):
        operators._C.best(boxes, np.zeros(3, np.int64), 0.5)
    with pytest.raises(TypeError):
        operators._C.best(boxes, np.zeros(2, np.int32), 0.5)


def looped_groups(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        others = [other for other in kept if groups[other] == groups[index]]
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in others):
            kept.append(index)
    return kept


def looped_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """torchvision's: the indices that are kept, by falling score."""
    found = looped_groups(boxes, scores, torch.zeros(len(boxes)), threshold)
    return torch.tensor(found, dtype=torch.long)


def overlap(one: Tensor, other: Tensor) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(float(width), 0.0) * max(float(height), 0.0)
    return shared / (
        float((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])) - shared
    )


def looped_roi_align(
    maps: Tensor, regions: list[Tensor], side: int, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """torchvision's, of one map."""
    assert aligned
    assert sampling_ratio == 0
    out = torch.zeros(len(regions[0]), maps.shape[1], side, side, dtype=maps.dtype)
    for index, region in enumerate(regions[0].tolist()):
        x1, y1, x2, y2 = (value * scale - 0.5 for value in region)
        down, across = (y2 - y1) / side, (x2 - x1) / side
        for row in range(side):
            for column in range(side):
                ys = [y1 + row * down + (i + 0.5) * down / math.ceil(down) for i in range(math.ceil(down))]
                xs = [x1 + column * across + (i + 0.5) * across / math.ceil(across) for i in range(math.ceil(across))]
                samples = [sampled(maps[0], y, x) for y in ys for x in xs]
                if samples:
                    out[index, :, row, column] = torch.stack(samples).mean(0)
    return out


def sampled(feature_map: Tensor, y: float, x: float) -> Tensor:
    _, H, W = feature_map.shape
    if not (-1 <= y <= H and -1 <= x <= W):
        return torch.zeros_like(feature_map[:, 0, 0])
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    dy, dx = y - top, x - left
    upper = feature_map[:, top, left] * (1 - dx) + feature_map[:, top, right] * dx
    lower = feature_map[:, bottom, left] * (1 - dx) + feature_map[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy
