"""Where a product's rows are read, and which pixel each makes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conformer_fast.engines.native.layout import BLOCK, TILE, Layout, Rows, convolved, patches


def windows(maps: Layout, side: int, stride: int, height: int, width: int) -> np.ndarray:
    """The values of maps with halos that each result's window reads, by their places, in the order of images, rows and
    columns: (results, side * side)."""
    pixels = torch.arange(maps.pixels, dtype=torch.float64).reshape(maps.images, 1, maps.padded_height, -1)
    first = maps.halo - side // 2
    read = pixels[:, :, first:, first:][:, :, : (height - 1) * stride + side, : (width - 1) * stride + side]
    return F.unfold(read, side, stride=stride).transpose(1, 2).reshape(-1, side * side).numpy().astype(np.int64)


def found_windows(maps: Layout, rows: Rows, side: int, stride: int, results: int) -> np.ndarray:
    """The same of these rows, as csrc/int8.h reads them."""
    row = np.arange(rows.rows)
    if rows.tiles is None:
        starts = row * stride * maps.channels
    else:
        starts = rows.tiles[row // TILE] + row % TILE * stride * maps.channels
    made = row if rows.results is None else rows.results
    assert sorted(made[made >= 0]) == list(range(results)), "each result once"
    taps = np.arange(side)[:, None] * maps.padded_width * maps.channels + np.arange(side) * maps.channels
    values = (starts[:, None] + taps.reshape(-1))[made >= 0]
    assert (values % maps.channels == 0).all(), "a pixel's first channel"
    found = np.empty((results, side * side), np.int64)
    found[made[made >= 0]] = values // maps.channels
    return found


SIDES = [(1, 1), (1, 16), (1, 17), (2, 3), (3, 15), (4, 16), (5, 7), (7, 33), (14, 14), (16, 1)]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize(
    ("side", "stride", "halo"), [(1, 1, 0), (1, 1, 1), (1, 2, 0), (1, 2, 1), (3, 1, 1), (3, 2, 1), (7, 2, 3)]
)
def test_windows_are_read_and_each_result_is_made_once(side, stride, halo, sides, images):
    maps = Layout(images, *sides, 4, halo)
    height, width = (-(-length // stride) for length in sides)
    rows = convolved(maps, side, stride, height, width)
    found = found_windows(maps, rows, side, stride, images * height * width)
    np.testing.assert_array_equal(found, windows(maps, side, stride, height, width))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("sides", [(4, 4), (4, 68), (8, 12), (9, 14), (21, 19)], ids=str)
@pytest.mark.parametrize("side", [1, 2, 4])
def test_patches_lie_beside_each_other(side, sides, images):
    maps = Layout(images, *sides, 4)
    height, width = (length // side for length in sides)
    rows = patches(maps, side)
    found = found_windows(maps, rows, side, side, images * height * width)
    pixels = torch.arange(maps.pixels, dtype=torch.float64).reshape(images, 1, *sides)
    right = F.unfold(pixels, side, stride=side).transpose(1, 2).reshape(-1, side * side).numpy()
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(("sides", "by_line"), [((5, 7), False), ((4, 16), True), ((14, 14), True), ((2, 33), False)])
def test_the_way_of_fewest_tiles(sides, by_line):
    rows = convolved(Layout(1, *sides, 4, halo=1), 3, 1, *sides)
    lines, through = sides[0] * -(-sides[1] // TILE), -(-sides[0] * (sides[1] + 2) // TILE)
    assert rows.rows == TILE * min(lines, through)
    assert (rows.tiles[: rows.rows // TILE] % ((sides[1] + 2) * 4) == 0).all() == by_line


@pytest.mark.parametrize("images", range(1, 4))
def test_tiles_are_of_whole_blocks(images):
    for sides in SIDES:
        rows = convolved(Layout(images, *sides, 4, halo=1), 3, 1, *sides)
        assert rows.rows == len(rows.results)
        assert len(rows.tiles) == -(-rows.rows // BLOCK) * (BLOCK // TILE)


def test_places_are_within_halos():
    maps = Layout(2, 3, 4, 8, halo=1)
    whole = np.arange(maps.pixels).reshape(2, 5, 6)
    np.testing.assert_array_equal(maps.places(), whole[:, 1:4, 1:5])
    np.testing.assert_array_equal(Layout(2, 3, 4, 8).places(), np.arange(24).reshape(2, 3, 4))
