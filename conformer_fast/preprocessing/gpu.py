"""preprocess_batch() on a GPU: Pillow decodes on the CPU, our kernel resizes, crops and normalizes.

The weights are computed here, in NumPy, operation for operation as csrc/coefficients.cpp does, and the sums are of
integers: the pixels before normalization equal the CPU's to the last bit, and so do the normalized values, which are
looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ArgumentError, whole
from ..model.recipe import USUAL, Recipe
from .cpu import DTYPES, Cut, cuts_of, level_values

PRECISION_BITS = 22  # weights are multiples of 2^-22, as Pillow's
PIXEL = 4  # bytes of a pixel in Pillow's memory, of which the last is not used: so it is copied fastest


def preprocess_on_gpu(
    images: Sequence[Image.Image],
    size: int = 224,
    *,
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.float32,
    recipe: Recipe = USUAL,
) -> Tensor:
    """B pictures as the network's input: (B, 3, size, size) on `device`, in memory format channels_last.

    dtype:  float32, float16 or bfloat16; uint8 gives the pixels before normalization. Equals preprocess_batch().
    recipe: of the model, for its mean and std; default: ImageNet's

    Raises ImageError as preprocess_batch() does, ArgumentError for no pictures, a size that is not positive, another
    dtype or device, or a recipe that is not of three channels; ImportError without Triton.
    """
    try:
        import triton

        from ..kernels.preprocess import Pass, launch_preprocess
    except ImportError as error:
        raise ImportError(f'{error}; preprocess_on_gpu needs Triton: pip install "conformer-fast[triton]"') from error

    device = torch.device(device)
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ArgumentError(f"preprocess_on_gpu needs a CUDA device, got {device}; preprocess_batch runs on the CPU")
    if not images:
        raise ArgumentError("preprocess_on_gpu got no pictures; give at least one")
    size = whole("size", size)
    if dtype not in DTYPES:
        raise ArgumentError(f"pictures become {', '.join(map(str, DTYPES))}, not {dtype}; convert the result")

    cuts = cuts_of(images, size)
    tables = _Tables()
    first, second = [], []
    source = middle = out = 0
    for cut in cuts:
        width, height = cut.image.size
        columns = _axis(width, cut.width, cut.left, size)
        lines = _axis(height, cut.height, cut.top, size)
        row = PIXEL * width
        if cut.vertical_first:
            start, count = columns.span  # of the columns that the window reads
            at = source + PIXEL * start
            first.append(Pass(at, row, PIXEL, size, count, middle, lines.taps, tables.add(lines, 0), True))
            table = tables.add(columns, start)
            second.append(Pass(middle, 3 * count, 3, size, size, out, columns.taps, table, False))
        else:
            start, count = lines.span
            at = source + row * start
            first.append(Pass(at, row, PIXEL, count, size, middle, columns.taps, tables.add(columns, 0), False))
            table = tables.add(lines, start)
            second.append(Pass(middle, 3 * size, 3, size, size, out, lines.taps, table, True))
        source += row * height
        middle += 3 * size * count
        out += 3 * size * size
    values = None if dtype == torch.uint8 else level_values(dtype, recipe).to(device)
    result = launch_preprocess(_pixels(cuts).to(device), first, second, tables.tensor(device), values, PRECISION_BITS)
    return result.permute(0, 3, 1, 2)


class _Axis(NamedTuple):
    """size resized pixels: the first source pixel of each, and the weights from there on, (taps, size)."""

    starts: np.ndarray
    weights: np.ndarray
    span: tuple[int, int]  # of the source pixels that are read: the first, and how many

    @property
    def taps(self) -> int:
        return len(self.weights)


@lru_cache(maxsize=256)
def _axis(length: int, new_length: int, first: int, size: int) -> _Axis:
    """The pixels first ... first + size - 1 of a line of `length` resized to `new_length`: csrc/coefficients.cpp."""
    index = np.arange(first, first + size)
    if length == new_length:
        return _Axis(index, np.full((1, size), 1 << PRECISION_BITS), (first, size))
    scale = float(np.float32(length)) / new_length  # Pillow's box is of floats
    stretch = max(scale, 1.0)
    support, inverse = 2.0 * stretch, 1.0 / stretch
    centers = (index + 0.5) * scale
    starts = np.maximum(centers - support + 0.5, 0.0).astype(np.int64)
    stops = np.minimum(centers + support + 0.5, length).astype(np.int64)
    taken = np.arange((stops - starts).max())[:, None] + starts  # (taps, size)
    weights = np.where(taken < stops, _keys_cubic((taken - centers + 0.5) * inverse), 0.0)
    total = np.add.accumulate(weights)[-1]  # in order, as rounding depends on it
    weights = np.divide(weights, total, where=total != 0.0, out=weights)
    scaled = weights * (1 << PRECISION_BITS)
    rounded = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)
    return _Axis(starts, rounded, (int(starts[0]), int(stops[-1] - starts[0])))


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


class _Tables:
    """Starts and weights of many axes, one behind the other."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.entries: dict[tuple[bytes, bytes, int], int] = {}
        self.length = 0

    def add(self, axis: _Axis, origin: int) -> int:
        """The entry at which `axis` begins, with starts counted from `origin`; the same axis is kept once."""
        key = axis.starts.tobytes(), axis.weights.tobytes(), origin
        if key not in self.entries:
            self.entries[key] = self.length
            self.parts += [axis.starts - origin, axis.weights.ravel()]
            self.length += axis.starts.size + axis.weights.size
        return self.entries[key]

    def tensor(self, device: torch.device) -> Tensor:
        return torch.from_numpy(np.concatenate(self.parts).astype(np.int32)).to(device)


def _pixels(cuts: Sequence[Cut]) -> Tensor:
    """All pictures, one behind the other, PIXEL bytes a pixel."""
    return torch.frombuffer(bytearray().join(cut.image.tobytes("raw", "RGBX") for cut in cuts), dtype=torch.uint8)
