"""From an image file to the network's input, exactly as in the published evaluation.

Decode to RGB; short edge to int(256 / 224 * size) with Pillow's bicubic filter; centre crop of size x size; then
x[c] = (pixel[c] / 255 - MEAN[c]) / STD[c]. EXIF orientation is ignored, as the official loader ignores it.
Modes other than RGB become RGB as Pillow converts them, so transparency is dropped. Two exceptions: of 16-bit grey
the high byte counts, where Pillow would clip to white, and 32-bit grey (modes I and F), whose range is unknown, is
refused. docs/images.md lists every case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
MAX_RESIZED_PIXELS = 100_000_000  # 300 MB; reached only by a very long or very large picture


class ImageError(ValueError):
    """An image that cannot be used. The message says which file (if it came from one), what is wrong and what to do."""


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """A file's picture in mode RGB. The content decides the format, not the name; an animation gives its first frame.

    Raises ImageError for a path that cannot be read, a file that is no image, is damaged or truncated, has more pixels
    than Pillow's decompression-bomb limit allows, or has a mode without a defined RGB form.
    """
    try:
        with open(path, "rb") as file:
            return _decode(file)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); give the path of an image file") from error


def preprocess(image: Image.Image, size: int = 224) -> Tensor:
    """One picture as the network's input: float32, (3, size, size).

    Raises ImageError when it has no RGB form or is too long to be resized, ValueError when size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if 0 in image.size:
        raise ImageError(f"a {image.width}x{image.height} picture has no pixels; give one with at least 1x1")
    width, height = _resized(image.width, image.height, size)
    if width * height > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"a {image.width}x{image.height} picture would be resized to {width}x{height}, over the limit of "
            f"{MAX_RESIZED_PIXELS} pixels; crop it to a less extreme shape or use a smaller size than {size}"
        )
    resized = _to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)  # a half goes to the even neighbour
    pixels = np.array(resized.crop((left, top, left + size, top + size)))  # (size, size, 3) uint8
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255  # (3, size, size)
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def load_batch(paths: Sequence[str | os.PathLike[str]], size: int = 224) -> Tensor:
    """The pictures in B files as the network's input: float32, (B, 3, size, size).

    Raises ImageError for the first file that cannot be used, ValueError for no paths or a size that is not positive.
    """
    if not paths:
        raise ValueError("load_batch got no paths; give at least one image file")
    return torch.stack([_load_input(path, size) for path in paths])


def _load_input(path: str | os.PathLike[str], size: int) -> Tensor:
    image = load_image(path)
    try:
        return preprocess(image, size)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _decode(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
        image.load()
    except UnidentifiedImageError as error:
        raise ImageError(f"empty, damaged or not an image; the formats are {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels ({error}); make the picture smaller first") from error
    except Exception as error:  # decoders raise almost any type on damaged bytes
        raise ImageError(f"damaged or truncated ({type(error).__name__}: {error}); get the file again") from error
    return _to_rgb(image)


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) once the short edge has the length the protocol wants for a crop of `size`."""
    short, long = sorted((width, height))
    edge = int(256 / 224 * size)
    long_edge = int(edge * long / short)
    return (edge, long_edge) if width <= height else (long_edge, edge)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ImageError(f"mode {image.mode} (32 bits a pixel) has no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns of transparency
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"mode {image.mode} has no RGB form ({error}); save it as RGB") from error
