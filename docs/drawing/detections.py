"""The packaged detector on held-out pictures and on two photographs of scikit-image.

What is between the pictures is clear, so that one file is for light and dark pages.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image
from skimage import data

import conformer_fast as cf
from conformer_fast.datasets.scattered_digits import SIDE, ScatteredDigits
from conformer_fast.deploy.draw import drawn

from .palette import Palette
from .picture import ROOT, Picture

sys.path.append(str(ROOT / "examples"))

from detect_digits import MIN_SCORE, detections_of, enlarged, scattered_on

HELD_OUT = 4  # the first of those that are judged
SEED = 1
COLUMNS, GAP = 3, 12  # of the picture, pixels between its parts
SHOWN = 400  # pixels of a part's side
TEXT = (
    "Six pictures with boxes, names and masks of handwritten digits, found by the small detector that ships: four "
    "held-out ones on textures, one on Hubble's deep field, one on a cat"
)


def draw(_: Palette) -> bytes:
    fast = cf.compile(cf.create_detector(weights="packaged"), precision="fp32")
    parts = [drawn(enlarged(one), detections_of(fast, one), fast.labels, MIN_SCORE) for one in pictures()]
    rows = -(-len(parts) // COLUMNS)
    size = (COLUMNS * (SHOWN + GAP) - GAP, rows * (SHOWN + GAP) - GAP)
    out = Image.new("RGBA", size, (0, 0, 0, 0))
    for index, part in enumerate(parts):
        place = (index % COLUMNS * (SHOWN + GAP), index // COLUMNS * (SHOWN + GAP))
        out.paste(part.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS), place)
    file = io.BytesIO()
    out.quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


def pictures() -> list[Image.Image]:
    found = ScatteredDigits("test", SEED).draw(HELD_OUT)[0]
    parts = [Image.fromarray(np.ascontiguousarray(one.permute(1, 2, 0).numpy())) for one in found]
    for photograph in (data.hubble_deep_field(), data.chelsea()):
        ground = Image.fromarray(photograph).resize((SIDE, SIDE))
        parts.append(scattered_on(ground, SEED)[0])
    return parts


PICTURE = Picture("detections", draw, lambda: TEXT, width=600, ending="png", both=True)
