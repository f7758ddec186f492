"""Where the rows of a product come from and go to: tables for csrc/int8.h's Product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conformer_fast.errors import EngineError

LARGEST = 2**31 - 1
TILE, BLOCK = 16, 32  # rows, as in csrc/int8.h


@dataclass(frozen=True)
class Layout:
    """Of maps (images, height, width, channels) in memory, each with `halo` pixels around it."""

    images: int
    height: int
    width: int
    channels: int
    halo: int = 0

    @property
    def padded_height(self) -> int:
        return self.height + 2 * self.halo

    @property
    def padded_width(self) -> int:
        return self.width + 2 * self.halo

    @property
    def pixels(self) -> int:
        """With the halos."""
        return self.images * self.padded_height * self.padded_width

    def places(self) -> np.ndarray:
        """Of each pixel but the halos', in order: (images, height, width)."""
        image, y, x = np.ogrid[: self.images, : self.height, : self.width]
        return (image * self.padded_height + y + self.halo) * self.padded_width + x + self.halo


class Rows(NamedTuple):
    """A product's rows. tiles: the first value of each TILE rows; results: the pixel that each row makes, in the order
    of images, rows and columns, or -1 where it makes none. None: both in order."""

    rows: int
    tiles: np.ndarray | None
    results: np.ndarray | None


def convolved(maps: Layout, window: int, stride: int, height: int, width: int) -> Rows:
    """Of a convolution to height x width pixels. Its windows begin in the halo, and lie in it or the map.

    Where the stride is 1, rows may go on from one line of the map to the next, over what makes no result.
    """
    first = maps.halo - window // 2  # where the first window begins
    lines = maps.padded_width  # pixels from one line to the next
    if window == stride == 1 and not maps.halo:
        return Rows(maps.images * height * width, None, None)
    by_line = height * -(-width // TILE)
    through = -(-height * lines // TILE)
    if stride == 1 and through < by_line:
        place = np.arange(through * TILE)
        y, x, starts = place // lines, place % lines, place[::TILE]
    else:
        y, x = (axis.reshape(-1) for axis in np.mgrid[:height, : -(-width // TILE) * TILE])
        starts = (y * lines + x)[::TILE] * stride
    one = np.where((y < height) & (x < width), y * width + x, -1)
    image = np.arange(maps.images)[:, None]
    starts = (image * maps.padded_height + first) * lines + first + starts
    results = np.where(one < 0, -1, image * height * width + one)
    return _even(starts.reshape(-1) * maps.channels, results.reshape(-1))


def patches(maps: Layout, side: int) -> Rows:
    """Of windows of side x side pixels, one beside the other."""
    return convolved(maps, 1, side, maps.height // side, maps.width // side)


def _even(starts: np.ndarray, results: np.ndarray) -> Rows:
    """With tiles for whole blocks."""
    missing = -len(starts) % (BLOCK // TILE)
    starts = np.concatenate([starts, np.repeat(starts[-1:], missing)])
    if starts[-1] > LARGEST:
        raise EngineError(f"{starts[-1]:,} values are more than a table of 32 bits finds; give smaller images")
    return Rows(len(results), starts.astype(np.int32), results.astype(np.int32))
