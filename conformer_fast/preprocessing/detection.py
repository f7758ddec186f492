"""Pictures as a detector's images: the test pipeline of the official detection fork.

Resized with their ratio kept until the long edge is 1344 pixels or the short edge 800, normalized, and padded with
zeros at the bottom and right to multiples of 32. The resize is OpenCV's bilinear one, without antialiasing and in fixed
point, as it computes pixels of 8 bits: the same numbers (docs/detecting.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, ImageError, several
from ..model.detector.config import LONG_EDGE, MULTIPLE, SHORT_EDGE, edges_for
from ..model.detector.detect import ImageSize
from ..model.recipe import USUAL, Recipe, checked
from .cpu import to_rgb

WEIGHT_BITS = 11  # of what a pixel counts in OpenCV's resize


def fit_pictures(
    pictures: Sequence[Image.Image], *, recipe: Recipe = USUAL, edges: tuple[int, int] | None = None
) -> tuple[Tensor, list[ImageSize]]:
    """Pictures -> images (B, 3, H, W), float32, of one size that holds all, and where each picture is.

    recipe: of the model, for its mean and std; default: ImageNet's
    edges:  pixels that the long and the short edge of a picture are resized to, whichever is reached first; default:
            both the recipe's size, or (1344, 800) where it has none

    Raises ArgumentError for no pictures, edges that are no such pair, or a recipe that is not of three channels;
    ImageError for a picture too long to be resized or without an RGB form.
    """
    pictures = several("pictures", pictures)
    if not pictures:
        raise ArgumentError("fit_pictures got no pictures; give at least one")
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise ArgumentTypeError(f"pictures must be of Pillow, got {type(picture).__name__}; see predict for files")
    means, stds = checked(recipe).normalization
    if len(means) != 3:
        raise ArgumentError(f"pictures have 3 channels, the recipe's mean {means} has {len(means)}")
    sizes = [fitted_size(picture.width, picture.height, edges or edges_for(recipe.size)) for picture in pictures]
    H, W = (-(-max(side) // MULTIPLE) * MULTIPLE for side in zip(*(size[:2] for size in sizes), strict=True))
    images = torch.zeros(len(pictures), 3, H, W, dtype=torch.float32, device="cpu")
    mean, std = (torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1) for values in (means, stds))
    for image, picture, size in zip(images, pictures, sizes, strict=True):
        pixels = torch.from_numpy(np.array(picture if picture.mode == "RGB" else to_rgb(picture)))
        resized = _resized(pixels, size.height, size.width).permute(2, 0, 1)  # (3, height, width)
        image[:, : size.height, : size.width] = (resized / 255 - mean) / std
    return images, sizes


def upright(picture: Image.Image) -> Image.Image:
    """A file's picture turned as its EXIF orientation says: so OpenCV reads it for mmdetection, where the classifiers'
    loader does not turn it."""
    with suppress(Exception):  # damaged metadata, which change no pixel
        picture = ImageOps.exif_transpose(picture)
    return picture


def fitted_size(width: int, height: int, edges: tuple[int, int] = (LONG_EDGE, SHORT_EDGE)) -> ImageSize:
    """What a picture of this size becomes. Raises ArgumentError and ImageError as `fit_pictures` does."""
    if (
        not isinstance(edges, tuple | list)
        or len(edges) != 2
        or not all(type(edge) is int and 0 < edge <= 16 * LONG_EDGE for edge in edges)
    ):
        raise ArgumentError(f"edges must be two whole numbers of pixels, such as (1344, 800), got {edges!r}")
    if not width or not height:
        raise ImageError(f"a {width}x{height} picture has no pixels; give one with at least 1x1")
    factor = min(max(edges) / max(width, height), min(edges) / min(width, height))
    new_height, new_width = int(height * factor + 0.5), int(width * factor + 0.5)
    if not new_height or not new_width:
        raise ImageError(f"a {width}x{height} picture is too long: resized, nothing would be left of its short edge")
    return ImageSize(new_height, new_width, height, width)


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """(h, w, 3) uint8 -> (height, width, 3) float32 of whole numbers: OpenCV's INTER_LINEAR."""
    if tuple(pixels.shape[:2]) == (height, width):
        return pixels.float()
    rows, columns = _taps(pixels.shape[0], height), _taps(pixels.shape[1], width)
    lines = (_across(pixels[places], columns) >> 4 for places in rows.places)
    sums = [(line * share[:, None, None]) >> WEIGHT_BITS + 5 for line, share in zip(lines, rows.shares, strict=True)]
    return ((sums[0] + sums[1] + 2) >> 2).float()


def _across(lines: Tensor, columns: _Taps) -> Tensor:
    first, second = (
        lines[:, places].int() * share[None, :, None]
        for places, share in zip(columns.places, columns.shares, strict=True)
    )
    return first + second


class _Taps(NamedTuple):
    """The two pixels of a line that each pixel of the resized line is made of, and what they count, 2^-11 each."""

    places: tuple[Tensor, Tensor]
    shares: tuple[Tensor, Tensor]


def _taps(length: int, new_length: int) -> _Taps:
    place = (torch.arange(new_length, dtype=torch.float64, device="cpu") + 0.5) * (1 / (new_length / length)) - 0.5
    place = place.float()
    first = place.floor()
    places = (first.long().clamp(0, length - 1), (first.long() + 1).clamp(0, length - 1))
    share = place - first
    shares = ((part * (1 << WEIGHT_BITS)).round().int() for part in (1 - share, share))
    return _Taps(places, (next(shares), next(shares)))
