"""Regions read from maps of four sizes by one launch, beside the same in PyTorch, in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, layouts
from torch import Tensor

from benchmarks.judge import FLOOR, poisoned_memory
from conformer_fast.kernels import launch, regions
from conformer_fast.kernels.regions import read_regions
from conformer_fast.model.detector import operators
from conformer_fast.model.distance import ALLOWANCE, relative_error

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of values that no region has

STRIDES = (4, 8, 16, 32, 64)
HEIGHT, WIDTH = 500, 620  # of the image, in no map whole pixels; the finest is 125 x 155
LOWER = 112 - 2e-5  # a side that 1e-6 moves to the next map

REGIONS = {
    "finest": [(8.0, 4.0, 60.0, 40.0), (20.5, 30.25, 21.0, 31.0), (0.0, 100.0, 620.0, 110.0)],
    "next": [(100.0, 50.0, 300.0, 200.0), (310.0, 77.0, 430.0, 230.0)],
    "third": [(50.0, 60.0, 400.0, 380.0)],
    "last": [(100.0, 20.0, 600.0, 480.0), (0.0, 0.0, 620.0, 500.0)],
    "at-levels": [(10.0, 10.0, 10.0 + side, 10.0 + side) for side in (111.9, 112.0, 224.0, 448.0)],
    "just-below-a-level": [(0.0, 0.0, LOWER, LOWER), (0.0, 0.0, 2 * LOWER, 2 * LOWER)],
    "on-the-borders": [(-40.0, -30.0, 30.0, 20.0), (560.0, 450.0, 700.0, 560.0), (-200.0, -200.0, 700.0, 700.0)],
    "samples-a-pixel-outside": [(-4.0, -4.0, 24.0, 24.0), (596.0, 476.0, 624.0, 504.0)],  # which count
    "samples-further-outside": [(-4.1, -4.1, 23.9, 23.9), (596.1, 476.1, 624.1, 504.1)],
    "outside": [(-300.0, -300.0, -200.0, -200.0), (700.0, 600.0, 800.0, 700.0)],
    "without-extent": [(5.0, 5.0, 5.0, 60.0), (5.0, 60.0, 70.0, 60.0), (7.0, 7.0, 7.0, 7.0)],
    "inverted": [(60.0, 20.0, 20.0, 90.0), (60.0, 90.0, 20.0, 40.0)],
}
EMPTY = {"outside", "without-extent", "inverted"}


def maps_of(K: int, dtype: torch.dtype, height: int = HEIGHT, width: int = WIDTH) -> list[Tensor]:
    """Channels last. Beside each in memory is NaN."""
    random = torch.Generator().manual_seed(0)
    maps = []
    for stride in STRIDES:
        H, W = -(-height // stride), -(-width // stride)
        larger = torch.full((H + 4, W, K), torch.nan, dtype=dtype, device=DEVICE)
        larger[2:-2] = torch.randn(H, W, K, generator=random).to(dtype)
        maps.append(larger[2:-2].permute(2, 0, 1))
    return maps


def read(maps: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    with poisoned_memory():
        found = read_regions(maps, boxes, STRIDES, side)
    assert (found.shape, found.dtype) == ((len(boxes), len(maps[0]), side, side), maps[0].dtype)
    assert found.is_contiguous(memory_format=torch.channels_last)
    return found


def check(maps: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    """Each region may err by one rounding, and ALLOWANCE times as much as with float32 in PyTorch."""
    dtype = maps[0].dtype
    found = read(maps, boxes, side)
    exact = operators.read_regions([each.double() for each in maps], boxes.double(), STRIDES, side)
    same = operators.read_regions([each.float() for each in maps], boxes, STRIDES, side).to(dtype)
    for index, (ours, beside, true) in enumerate(zip(found, same, exact, strict=True)):
        bound = ALLOWANCE * relative_error(beside, true) + FLOOR[dtype]
        assert relative_error(ours, true) <= bound, boxes[index].tolist()
    return found


@pytest.mark.parametrize("name", REGIONS)
def test_regions(name):
    found = check(maps_of(13, torch.float32), torch.tensor(REGIONS[name], device=DEVICE), 7)
    assert bool(found.any()) is (name not in EMPTY)


def test_regions_far_larger_than_the_maps():
    """Few of their samples count: of each cell no more are looked at than the map has room for."""
    boxes = [(-5000.0, 10, 6000, 10.5), (7.0, -4000, 7.5, 3000), (-3e4, -2e4, 5e4, 1e4), (-1e3, -2e5, 1e5, 9e5)]
    check(maps_of(5, torch.float32, 40, 60), torch.tensor(boxes, device=DEVICE), 3)


@DTYPES
@pytest.mark.parametrize("side", [2, 14])
def test_precisions(dtype, side):
    boxes = torch.tensor([(20.0, 10, 75, 54), (5.5, 7, 140, 300), (10.0, 1, 620, 500)])
    check(maps_of(24, dtype), boxes.to(DEVICE), side)


@pytest.mark.parametrize("K", [1, 16, 100, 256, 300])
def test_channels(K):
    check(maps_of(K, torch.float16, 70, 90), torch.tensor([[3.0, 5.0, 40.0, 70.0], [0, 0, 90, 70]], device=DEVICE), 5)


def test_layouts():
    """Maps in reversed memory order and inside others, and regions whose values are not side by side."""
    boxes = torch.tensor([(20.0, 10, 75, 54), (5.5, 7, 140, 300), (10.0, 1, 620, 500)], device=DEVICE)
    for *maps, boxes_in in layouts([*maps_of(6, torch.float32), boxes]):
        check(maps, boxes_in, 7)


def test_small_maps():
    """The last ones are one pixel, or a line."""
    boxes = torch.tensor([[0.0, 0, 30, 8], [0, 0, 400, 8], [-100, -300, 300, 400], [-500, -300, 300, 400]])
    check(maps_of(10, torch.float32, 8, 30), boxes.to(DEVICE), 7)


def test_no_regions_are_no_launch():
    with launch.recording() as launched:
        found = read_regions(maps_of(13, torch.bfloat16), torch.zeros(0, 4, device=DEVICE), STRIDES, 14)
    assert (found.shape, found.dtype) == ((0, 13, 14, 14), torch.bfloat16)
    assert not launched


def test_all_maps_are_one_launch():
    maps = [each.to("meta") for each in maps_of(300, torch.float16, 64, 64)]
    with launch.recording() as launched:
        read_regions(maps, torch.empty(1000, 4, device="meta"), STRIDES, 7)
    assert [one.grid for one in launched] == [(1000 * 13, 2)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30], ids=str)
def test_values_that_no_region_has(value):
    """They end, and read nothing beside the maps, where NaN is. Those that are not finite are all zeros."""
    box = torch.tensor([3.0, 4.0, 40.0, 30.0])
    boxes = torch.stack([torch.where(torch.arange(4) == index, value, box) for index in range(4)])
    spread = abs(value) * torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    found = read(maps_of(3, torch.float32, 48, 64), torch.cat([boxes, torch.full((1, 4), value), spread]).to(DEVICE), 3)
    assert found.isfinite().all()
    if abs(value) != 1e30:
        assert not found.any()


def test_the_levels_are_those_of_the_definition():
    assert regions.LEVELS == operators.LAST_LEVEL + 1
    assert regions.FINEST.value == operators.FINEST


@pytest.mark.slow
@pytest.mark.parametrize("side", [112, 224, 448])
def test_around_a_level(side):
    """Of each side that float32 has near there, the map that the definition chooses: each has a number of its own."""
    maps = [torch.full((1, 32, 32), float(level)) for level in range(5)]
    bits = torch.tensor(float(side)).view(torch.int32) + torch.arange(-8, -2, dtype=torch.int32)
    boxes = torch.zeros(6, 4)
    boxes[:, 2:] = bits.view(torch.float32)[:, None]
    found = read([each.to(DEVICE) for each in maps], boxes.to(DEVICE), 4).mean((1, 2, 3)).round()
    assert found.tolist() == operators.read_regions(maps, boxes, STRIDES, 4).mean((1, 2, 3)).round().tolist()
    assert len(found.unique()) == 2
