"""Photographs the server's page as page.png beside this file: python docs/screenshot.py, or `make screenshot`.

Nothing on it is made up: a server in this process runs the packaged digits model, and a headless Chromium shows the
page. The picture is one of scikit-learn's digits, held out from the training; the branches take it for different ones.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

import conformer_fast as cf
from conformer_fast.datasets.digits import digit_image, load_pixels

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from browser import launched  # noqa: E402 - found by the path above
from serving_samples import running  # noqa: E402 - as above

DIGIT = 836  # its place in the data set
SIDE = 320
WINDOW = {"width": 1200, "height": 1110}
MOST_BYTES = 200_000


def digit() -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    digit_image(load_pixels()[0][DIGIT]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def photographed() -> bytes:
    """The page as a PNG, once the picture has its classes and its heat map."""
    model = cf.compile(cf.create_model("digits", weights="packaged"), backend="reference")
    with running(model, max_batch=4) as client, launched() as browser:
        page = browser.new_page(viewport=WINDOW, reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.locator("#files").set_input_files({"name": "digit.png", "mimeType": "image/png", "buffer": digit()})
        page.locator(".controls").wait_for()
        return page.screenshot()


def small(png: bytes) -> bytes:
    """The same picture in fewer bytes."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "PNG", optimize=True)
    if file.tell() > MOST_BYTES:
        sys.exit(f"the picture has {file.tell():,} bytes, {MOST_BYTES:,} are enough")
    return file.getvalue()


if __name__ == "__main__":
    (HERE / "page.png").write_bytes(small(photographed()))
