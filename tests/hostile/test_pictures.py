"""Pictures that are damaged, or say that they are larger than anything."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from attempts import Attempts, every
from damage import broken
from hypothesis import strategies as st
from picture_damage import broken_picture
from PIL import Image, PngImagePlugin, features

from conformer_fast.errors import ImageError
from conformer_fast.preprocessing.cpu import FORMATS, load_batch, load_image, preprocess

SIZE = 32
OF_PILLOW = (  # which Python can turn off for a whole process alone: the command line does
    *("EXIF data", "Metadata Warning", "Tag offset too large", "Tag data larger than file", "Truncated File Read"),
    *("Invalid APNG", "malformed MPO file", "could be decompression bomb"),
)


def _pixels(mode: str, width: int = 37, height: int = 23) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 4), dtype=np.uint8)
    image = Image.fromarray(values.repeat(4, 0).repeat(4, 1)[:height, :width], "RGBA")
    return image.convert(mode)


def _saved(mode: str, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    _pixels(mode).save(file, kind, **options)
    return file.getvalue()


def _with_texts() -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 300)
    texts.add_itxt("Title", "y" * 300, zip=True)
    return _saved("RGB", "PNG", pnginfo=texts, icc_profile=bytes(200), exif=Image.Exif().tobytes())


PICTURES = {
    "PNG": _saved("RGB", "PNG"),
    "PNG with texts": _with_texts(),
    "PNG, palette": _saved("P", "PNG"),
    "PNG, RGBA": _saved("RGBA", "PNG"),
    "PNG, 1 bit": _saved("1", "PNG"),
    "JPEG": _saved("RGB", "JPEG", exif=Image.Exif().tobytes()),
    "JPEG, progressive": _saved("CMYK", "JPEG", progressive=True),
    "BMP": _saved("RGB", "BMP"),
    "BMP, palette": _saved("P", "BMP"),
    "GIF": _saved("P", "GIF", save_all=True, append_images=[_pixels("P")]),
    "TIFF": _saved("RGB", "TIFF"),
    "TIFF, LZW": _saved("RGB", "TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": _saved("RGB", "TIFF", compression="jpeg"),
    "TIFF, fax": _saved("1", "TIFF", compression="group4"),
    "TIFF, deflated": _saved("L", "TIFF", compression="tiff_adobe_deflate"),
    "WEBP": _saved("RGB", "WEBP"),
    "WEBP, lossless": _saved("RGBA", "WEBP", lossless=True),
    "PPM": _saved("RGB", "PPM"),
    "PGM": _saved("L", "PPM"),
    "PBM": _saved("1", "PPM"),
}


def test_there_is_a_picture_of_every_format():
    assert {name.partition(",")[0].partition(" ")[0] for name in PICTURES} >= set(FORMATS)
    assert features.check("webp")


def pixels_of(path):
    return preprocess(load_image(path), SIZE)


@pytest.fixture
def libtiff_prints(attempt, capfd) -> Iterator[None]:
    """What it finds, and nobody can tell it not to for one picture."""
    yield
    printed = capfd.readouterr().err
    assert all(line.split(":")[0].isidentifier() or "tif" in line for line in printed.splitlines()), printed


@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures(kind, attempt: Attempts, tried, request):
    """Bytes changed anywhere; chunks, segments, entries and their numbers changed, with right checks."""
    content = PICTURES[kind]
    if kind.startswith("TIFF"):
        request.getfixturevalue("libtiff_prints")
    expected = pixels_of(attempt.write("x", content))
    other = PICTURES["PNG" if kind != "PNG" else "JPEG"]

    def one(damaged: bytes) -> None:
        path = attempt.write("x", damaged)

        def equal(pixels) -> bool:
            assert pixels.shape == (3, SIZE, SIZE)
            assert pixels.isfinite().all()
            return bool((pixels == expected).all())

        attempt.read(lambda: pixels_of(path), ImageError, path, equal, OF_PILLOW)

    one(content)
    every(st.one_of(broken(content, other), broken_picture(content)), 60, one)
    attempt.check()
    tried(f"pictures ({kind}): damaged", attempt.counts)


def test_a_batch_names_the_damaged_one(attempt: Attempts, tried):
    """All are read, or none, and the first that cannot be is named."""
    sound = attempt.write("sound.png", PICTURES["PNG"])

    def one(damaged: bytes) -> None:
        path = attempt.write("damaged.png", damaged)

        def equal(batch) -> bool:
            assert batch.shape == (3, 3, SIZE, SIZE)
            return bool((batch[0] == batch[1]).all())

        attempt.read(lambda: load_batch([sound, path, sound], SIZE, threads=2), ImageError, path, equal)

    one(PICTURES["PNG"])
    every(broken_picture(PICTURES["PNG"]), 40, one)
    attempt.check()
    tried("pictures (in a batch): damaged", attempt.counts)
