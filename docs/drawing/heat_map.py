"""Where error comes in: what `cf.diff` finds of the packaged digits model, drawn as `conformer-fast diff --svg` draws
it."""

from __future__ import annotations

from functools import cache

import conformer_fast as cf
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.verification import heatmap
from conformer_fast.verification.diff import Diff

from .palette import DARK, Palette
from .picture import Picture
from .sheet import described

PRECISIONS = "bf16", "int8"
IMAGES, CALIBRATION_PICTURES = 8, 512
TITLE = "digits: SQNR against the reference"
TEXT = (
    "A heat map of how near the packaged digits model comes to the reference in float64, in decibels: a row for what "
    "each branch and coupling unit of its 3 blocks computes and for both heads' scores, a column for PyTorch and for "
    "the CPU's engine, in bf16 and in int8."
)


def draw(palette: Palette) -> bytes:
    return described(heatmap.svg(_found(), TITLE, dark=palette is DARK), TEXT)


@cache
def _found() -> Diff:
    split, model = load_digits_split(), cf.create_model("digits", weights="packaged")
    quantization = cf.calibrate(model, [split.train_images[:CALIBRATION_PICTURES]], precision="int8")
    pairs = [("engine", precision) for precision in PRECISIONS]
    return cf.diff(model, split.test_images[:IMAGES], pairs, quantization=quantization)


PICTURE = Picture("heat-map", draw, lambda: TEXT, width=480)
