"""Large texts and color profiles in a PNG, of which Pillow takes only so much, leave its picture whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from conformer_fast.errors import ImageError
from conformer_fast.preprocessing.cpu import load_image
from conformer_fast.preprocessing.png import without_texts

PIXELS = np.random.RandomState(0).randint(0, 256, (9, 7, 3), np.uint8)


def png(kind: str) -> bytes:
    info, options = PngImagePlugin.PngInfo(), {}
    if kind == "packed text":
        info.add_text("prompt", "x" * 3_000_000, zip=True)
    elif kind == "international text":
        info.add_itxt("prompt", "x" * 3_000_000, zip=True)
    elif kind == "many texts":
        for index in range(70):
            info.add_text(str(index), "x" * 1_000_000, zip=True)
    elif kind == "text at the end":
        after = PngImagePlugin.PngInfo()
        after.add_text("prompt", "x" * 3_000_000, zip=True)
        (chunk,) = after.chunks
        info.add(chunk[0], chunk[1], after_idat=True)
    elif kind == "profile":
        options["icc_profile"] = bytes(5_000_000)
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=info, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind", ["plain", "packed text", "international text", "many texts", "text at the end", "profile"]
)
def test_the_picture_is_whole(kind, tmp_path):
    content = png(kind)
    assert np.array_equal(load_image(io.BytesIO(content)), PIXELS)
    (tmp_path / "x.png").write_bytes(content)
    assert np.array_equal(load_image(tmp_path / "x.png"), PIXELS)
    assert without_texts(content) == png("plain")


def test_what_is_damaged_stays_so():
    content = png("packed text")
    with pytest.raises(ImageError, match="damaged"):
        load_image(io.BytesIO(content[:-40]))
    for other in (b"", b"GIF89a", png("plain"), png("plain")[:30], b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff"):
        assert without_texts(other) == other
