"""The server's page, photographed. Nothing on it is made up: a server in this process runs the packaged digits model,
and a headless Chromium shows the page. The picture is one of scikit-learn's digits, held out from the training; the
branches take it for different ones."""

from __future__ import annotations

import io
import sys

from PIL import Image

import conformer_fast as cf
from conformer_fast.datasets.digits import digit_image, load_pixels

from .palette import Palette
from .picture import ROOT, CannotDrawError, Picture

sys.path.append(str(ROOT / "tests"))

from browser import launched, missing
from serving_samples import running

DIGIT = 836  # its place in the data set
SIDE = 320
WINDOW = {"width": 1200, "height": 1110}
MOST_BYTES = 200_000
TEXT = (
    "The server's page: a handwritten digit with a heat map over it, and beside it the likeliest classes by both "
    "branches and by each alone"
)


def digit() -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    digit_image(load_pixels()[0][DIGIT]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def draw(palette: Palette) -> bytes:
    """The page as a PNG, in its own colors for such a reader, once the picture has its classes and its heat map."""
    if why := missing():
        raise CannotDrawError(why)
    model = cf.compile(cf.create_model("digits", weights="packaged"), backend="reference")
    with running(model, max_batch=4) as client, launched() as browser:
        page = browser.new_page(viewport=WINDOW, reduced_motion="reduce", color_scheme=palette.name)
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.locator("#files").set_input_files({"name": "digit.png", "mimeType": "image/png", "buffer": digit()})
        page.locator(".controls").wait_for()
        return small(page.screenshot())


def small(png: bytes) -> bytes:
    """The same picture in fewer bytes. Raises CannotDrawError if they are many."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "PNG", optimize=True)
    if file.tell() > MOST_BYTES:
        raise CannotDrawError(f"it has {file.tell():,} bytes, {MOST_BYTES:,} are enough")
    return file.getvalue()


PICTURE = Picture("page", draw, lambda: TEXT, width=600, ending="png")
