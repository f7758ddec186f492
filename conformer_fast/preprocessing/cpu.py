"""From an image file to the network's input, exactly as in the published evaluation.

Decode to RGB; short edge to int(256 / 224 * size) with Pillow's bicubic filter; center crop of size x size; then
x[c] = (pixel[c] / 255 - mean[c]) / std[c], with ImageNet's where a model's recipe has no others. EXIF orientation is
ignored, as the official loader ignores it.
Modes other than RGB become RGB as Pillow converts them, so transparency is dropped. Two exceptions: of 16-bit gray
the high byte counts, where Pillow would clip to white, and 32-bit gray (modes I and F), whose range is unknown, is
refused. docs/images.md lists every case.

Pillow decodes. The rest is done by the extension of csrc/, in one go and for the cropped window only, bit for bit as
Pillow would do it; where the extension cannot be used, Pillow does it, and the first time a warning says so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, ImageError, several, shown, whole
from ..extension import unusable, warn_without
from ..model.recipe import USUAL, Recipe, checked
from ..model.shapes import side
from ..storage.regular import open_regular
from .png import without_texts

if not unusable():
    from .. import _C
else:
    _C = None  # type: ignore[assignment]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
STRIP_BYTES = 4_000_000  # Pillow gives the memory of a picture of 16 MB at once, if its block size was not changed
MAX_RESIZED_PIXELS = 100_000_000  # 300 MB; reached only by a very long or very large picture
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


def load_image(path: str | os.PathLike[str] | BinaryIO, *, most_pixels: float | None = None) -> Image.Image:
    """A file's picture in mode RGB, from its path or from the open file. The content decides the format, not the name;
    an animation gives its first frame.

    most_pixels: of a picture that is decoded; None: what Pillow allows

    Raises ImageError for a path that cannot be read, a file that is no image, is damaged or truncated, has more pixels
    than `most_pixels` or Pillow's decompression-bomb limit, or has a mode without a defined RGB form.
    """
    if not isinstance(path, str | os.PathLike):
        if not hasattr(path, "read"):
            raise ArgumentTypeError(f"a picture must be a path or an open file, got {shown(repr(path))}")
        return _decode(path, most_pixels)
    try:
        with open_regular(path) as file:
            return _decode(file, most_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); give the path of an image file") from error


class Cut(NamedTuple):
    """What is done to a picture in mode RGB: it is resized, and the window at (left, top) is cut out.

    Each of the two passes of a resize rounds to 8 bits, so their order counts: vertical_first is Pillow's choice.
    """

    image: Image.Image
    width: int
    height: int
    left: int
    top: int
    vertical_first: bool


def preprocess(image: Image.Image, size: int = 224, *, recipe: Recipe = USUAL) -> Tensor:
    """One picture as the network's input: float32, (3, size, size).

    recipe: of the model, `model.recipe`, for its mean and std; default: ImageNet's

    Raises ImageError when it has no RGB form or is too long to be resized, ArgumentError when size is not positive, it
    is no picture, or the recipe is not of three channels.
    """
    out = _empty(1, size, torch.float32, channels_last=False)
    _fill(out, [cut_of(image, size)], 1, recipe)
    return out[0]


def preprocess_batch(
    images: Sequence[Image.Image],
    size: int = 224,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    threads: int | None = None,
    recipe: Recipe = USUAL,
) -> Tensor:
    """B pictures as the network's input: (B, 3, size, size).

    dtype:         float32, or float16 or bfloat16, rounded to nearest; uint8 gives the pixels before normalization.
    channels_last: in PyTorch's memory format of that name, as convolutions on a GPU want it.
    threads:       at most so many; PyTorch's number if None. The result does not depend on it.
    recipe:        of the model, for its mean and std; default: ImageNet's.

    Raises ImageError, which says which picture it is, as preprocess() does; ArgumentError for no pictures, another
    dtype, a size or a number of threads that is not positive, or a recipe that is not of three channels.
    """
    images = several("images", images)
    if not images:
        raise ArgumentError("preprocess_batch got no pictures; give at least one")
    out = _empty(len(images), size, dtype, channels_last)
    _fill(out, cuts_of(images, size), _threads(threads), recipe)
    return out


def load_batch(
    paths: Sequence[str | os.PathLike[str]], size: int = 224, *, threads: int | None = None, recipe: Recipe = USUAL
) -> Tensor:
    """The pictures in B files as the network's input: float32, (B, 3, size, size).

    threads: that read, decode and resize, at most; PyTorch's number if None. The result does not depend on it.
    recipe:  of the model, `model.recipe`, for its mean and std; default: ImageNet's

    Raises ImageError for the first file that cannot be used, ArgumentError for no paths or a size that is not positive.
    """
    paths = several("paths", paths)
    if not paths:
        raise ArgumentError("load_batch got no paths; give at least one image file")
    out = _empty(len(paths), size, torch.float32, channels_last=False)

    def load(index: int) -> None:
        image = load_image(paths[index])
        try:
            cut = cut_of(image, size)
        except ImageError as error:
            raise ImageError(f"{paths[index]}: {error}") from error
        _fill(out[index : index + 1], [cut], 1, recipe)

    with ThreadPoolExecutor(min(_threads(threads), len(paths))) as pool:
        for _ in pool.map(load, range(len(paths))):
            pass
    return out


def image_path() -> str:
    """What resizes and normalizes pictures here, in words."""
    if _C is None:
        return f"Pillow and PyTorch, slower and with the same numbers: {unusable()}"
    return f"the extension, with {_C.instruction_sets()[0]} instructions"


def cut_of(image: Image.Image, size: int) -> Cut:
    """How `image` becomes size x size pixels. Raises as preprocess() does."""
    if not isinstance(image, Image.Image):
        raise ArgumentTypeError(f"pictures must be of Pillow, got {type(image).__name__}; load_batch takes files")
    if 0 in image.size:
        raise ImageError(f"a {image.width}x{image.height} picture has no pixels; give one with at least 1x1")
    width, height = _resized(image.width, image.height, size)
    if width * height > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"a {image.width}x{image.height} picture would be resized to {width}x{height}, over the limit of "
            f"{MAX_RESIZED_PIXELS} pixels; crop it to a less extreme shape or use a smaller size than {size}"
        )
    return Cut(
        image if image.mode == "RGB" else to_rgb(image),
        width,
        height,
        round((width - size) / 2.0),  # a half goes to the even neighbor
        round((height - size) / 2.0),
        _vertical_first(*image.size, width, height),
    )


def cuts_of(images: Sequence[Image.Image], size: int) -> list[Cut]:
    """cut_of() for each; an ImageError says which picture it is."""
    cuts = []
    for index, image in enumerate(images):
        try:
            cuts.append(cut_of(image, size))
        except ImageError as error:
            raise ImageError(f"picture {index} of {len(images)}: {error}") from error
    return cuts


def level_values(dtype: torch.dtype, recipe: Recipe = USUAL) -> Tensor:
    """(3, 256): what each of the levels 0 ... 255 of each channel becomes.

    Raises ArgumentError for a recipe that is not of three channels.
    """
    return _level_values(dtype, *recipe.normalization)


@cache
def _level_values(dtype: torch.dtype, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    levels = torch.arange(256, dtype=torch.uint8, device="cpu").expand(3, 1, 256)
    return _normalize(levels, dtype, mean, std).reshape(3, 256)


def _normalize(pixels: Tensor, dtype: torch.dtype, means: tuple[float, ...], stds: tuple[float, ...]) -> Tensor:
    """(3, H, W) of uint8 -> the same in `dtype`, computed in float32 and rounded once."""
    if len(means) != 3:
        raise ArgumentError(f"pictures have 3 channels, the recipe's mean {means} has {len(means)}")
    mean, std = (torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1) for values in (means, stds))
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def _empty(count: int, size: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    size = side("size", size)
    if dtype not in DTYPES:
        raise ArgumentError(f"pictures become {', '.join(map(str, DTYPES))}, not {dtype}; convert the result")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((count, 3, size, size), dtype=dtype, device="cpu", memory_format=memory_format)


def _fill(out: Tensor, cuts: Sequence[Cut], threads: int, recipe: Recipe) -> None:
    """Writes one picture a cut into out (B, 3, size, size), contiguous in either order of its dimensions."""
    checked(recipe)
    if _C is None:
        warn_without()
        size = out.shape[-1]
        for result, cut in zip(out, cuts, strict=True):
            resized = cut.image.resize((cut.width, cut.height), Image.Resampling.BICUBIC)
            window = resized.crop((cut.left, cut.top, cut.left + size, cut.top + size))
            pixels = torch.from_numpy(np.array(window)).permute(2, 0, 1)  # (3, size, size)
            result.copy_(pixels if out.dtype == torch.uint8 else _normalize(pixels, out.dtype, *recipe.normalization))
        return
    pictures = [(_memory(cut.image), cut.image.width, cut.image.height, *cut[1:]) for cut in cuts]
    channels_last = not out.is_contiguous()
    memory = out.permute(0, 2, 3, 1) if channels_last else out
    values = None if out.dtype == torch.uint8 else _as_array(level_values(out.dtype, recipe))
    _C.resample(pictures, _as_array(memory), channels_last, values, threads)


def _as_array(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()  # NumPy has no bfloat16


def _memory(image: Image.Image) -> Any:
    """The pixels as the extension takes them: where they are, if Pillow shows them, else a copy."""
    if hasattr(image, "__arrow_c_array__") and Image.core.get_alignment() == 1:
        for view in (_whole, _strips):
            try:
                return view(image)
            except ValueError:  # the memory is in several blocks
                pass
    return np.asarray(image)


def _whole(image: Image.Image) -> Any:
    return image.__arrow_c_array__()


def _strips(image: Image.Image) -> list[Any]:
    """Copies of parts that are small enough for one block, which Pillow makes 20 times as fast as an array.

    The last strip ends below the picture, in rows of zeros.
    """
    rows = max(1, STRIP_BYTES // (4 * image.width))
    below = _C.strip_spare_rows(image.width)
    boxes = [(0, y, image.width, y + rows + below) for y in range(0, image.height, rows)]
    return [image.crop(box).__arrow_c_array__() for box in boxes]


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else whole("threads", threads)


def _decode(file: BinaryIO, most_pixels: float | None) -> Image.Image:
    try:
        image = _opened(file, most_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"empty, damaged or not an image; the formats are {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels ({shown(error)}); make the picture smaller first") from error
    except Exception as error:  # decoders raise almost any type on damaged bytes
        raise ImageError(
            f"damaged or truncated ({type(error).__name__}: {shown(error)}); get the file again"
        ) from error
    return to_rgb(image)


def _opened(file: BinaryIO, most_pixels: float | None) -> Image.Image:
    """Loaded. Large texts and profiles of a PNG, which change no pixel, are what Pillow refuses with a ValueError."""
    try:
        image = Image.open(file, formats=FORMATS)
        if most_pixels is not None and image.width * image.height > most_pixels:  # its header says; nothing is decoded
            raise ImageError(
                f"a {image.width}x{image.height} picture has {image.width * image.height:,} pixels, {most_pixels:,.0f} "
                f"are allowed; make it smaller first"
            )
        image.load()
    except ImageError:
        raise
    except ValueError:
        file.seek(0)
        content = file.read()
        shorter = without_texts(content)
        if len(shorter) == len(content):
            raise
        image = Image.open(BytesIO(shorter), formats=FORMATS)
        image.load()
    return image


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) once the short edge has the length the protocol wants for a crop of `size`."""
    short, long = sorted((width, height))
    edge = int(256 / 224 * size)
    long_edge = int(edge * long / short)
    return (edge, long_edge) if width <= height else (long_edge, edge)


def _vertical_first(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Which pass the installed Pillow takes first: its results changed twice with that choice, made for speed."""
    if PILLOW >= (13, 0):
        return height - new_height > max(0, 2 * (width - new_width))
    if PILLOW >= (12, 2):
        return height > 100 * width and height > new_height
    return False


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ImageError(f"mode {image.mode} (32 bits a pixel) has no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGBA")  # the same colors; straight to RGB, Pillow warns of transparency
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"mode {image.mode} has no RGB form ({shown(error)}); save it as RGB") from error
