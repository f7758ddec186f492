"""What accuracy costs in speed, from stored results: published top-1 and our own error of the scores, above each
other.

The top-1 is what mmpretrain published of fp32; it has not been reproduced here, and was not measured in other
precisions, so only fp32 has points there. What was measured is how far each precision's scores are from the reference.
bf16 and int8 took turns in one run, fp32 is of another. Bars through a point: the middle half of the rounds, where
these are stored, and the least and the largest error of the images.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from benchmarks.gpu.steps import VARIANTS
from benchmarks.render import ACCURACY
from conformer_fast.evaluation.published import MMPRETRAIN

from . import speed
from .palette import Palette
from .picture import Picture
from .sheet import LINE, NAME, WIDTH, Sheet

BATCH = 8
SHAPES = {"fp32": "o", "bf16": "s", "int8": "^"}
TITLE = "Accuracy against speed"
LEFT, RIGHT = 44, WIDTH - 14  # points: from and to, of both panels
SPEEDS, FEWEST = (10, 20, 50, 100), 7.5  # pictures a second: ticks, and where the panels begin
NOTES = (
    "bars across: the middle half of the rounds, if stored;",
    "upright: the least and the largest error of images.",
    "bf16 and int8 took turns; fp32 is of another run.",
    f"Errors are of random weights and noise{'' if ACCURACY.parent == speed.FILE.parent else ', on another CPU'}.",
)
Spread = tuple[float, float, float]  # low, middle, high


class Panel(NamedTuple):
    """Points of its top and bottom, and percents there; ticks: percents."""

    name: str
    top: float
    bottom: float
    most: float
    least: float
    ticks: tuple[int, ...]

    def y(self, percent: float) -> float:
        return self.bottom - (self.bottom - self.top) * (percent - self.least) / (self.most - self.least)


TOP1 = Panel("published fp32 top-1, %, not reproduced here", 124, 274, 84.5, 81, (81, 82, 83, 84))
ERRORS = Panel("measured error of the scores, %", 356, 616, 2.8, 0, (0, 1, 2))


class Point(NamedTuple):
    """rate: pictures a second; error: of the scores"""

    rate: Spread
    error: Spread


def points() -> dict[str, dict[str, Point]]:
    """Of our engine: variant -> precision -> what is stored, in order of speed."""
    report = _report()
    rows = {row["precision"]: row for row in report["rows"] if row["backend"] == "openvino"}
    rates = {key[0]: found for key, found in speed.rates().items() if key[1:] == (BATCH, speed.OURS, "fp32")}
    found: dict[str, dict[str, Point]] = {variant: {} for variant in VARIANTS}
    for index, variant in enumerate(report["variants"]):
        for precision in SHAPES:
            error = tuple(rows[precision][key][index] for key in ("low", "errors", "high"))
            rate = rates[variant] if precision == "fp32" else _beside_8_bits(variant, precision)
            found[variant][precision] = Point(rate, error)
    return found


def _report() -> dict[str, Any]:
    return json.loads(ACCURACY.read_text(encoding="utf-8"))


def _beside_8_bits(variant: str, precision: str) -> Spread:
    """Of the run that int8 was timed in. Of its rounds only the median is stored."""
    for row in json.loads((speed.FILE.parent / "int8.json").read_text(encoding="utf-8"))["speed"]:
        if (row["variant"], row["batch"], row["implementation"]) == (variant, BATCH, f"{speed.OURS} {precision}"):
            return (BATCH / row["seconds"],) * 3
    raise KeyError(f"{variant} {precision}")


def _text() -> str:
    found = points()
    top1 = ", ".join(f"{variant} {MMPRETRAIN[variant][0]} %" for variant in found)
    parts = []
    for variant, own in found.items():
        speeds = ", ".join(f"{point.rate[1]:.3g} in {precision}" for precision, point in own.items())
        parts.append(f"{variant}: {speeds}")
    errors = []
    for precision in SHAPES:
        percents = [100 * own[precision].error[1] for own in found.values()]
        errors.append(f"{min(percents):.2g} to {max(percents):.2g} % in {precision}")
    report = _report()
    return (
        f"Two panels over our pictures a second in batches of {BATCH} on {speed.machine()}. {'; '.join(parts)}. fp32 "
        "is of another run than bf16 and int8, which took turns. Above, of fp32 alone, the top-1 that mmpretrain "
        f"published, not reproduced here: {top1}; in bf16 and int8 it was not measured on ImageNet. Below, the "
        f"measured relative error of the scores, of random weights and {report['images']} images of noise on an "
        f"{report['name']} (family {report['family']}, model {report['model']}): {', '.join(errors)}."
    )


def draw(palette: Palette) -> bytes:
    found = points()
    fastest = 1.12 * max(point.rate[2] for own in found.values() for point in own.values())

    def x(rate: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(rate / FEWEST) / math.log(fastest / FEWEST)

    sheet = Sheet(ERRORS.bottom + 68 + LINE * len(NOTES), palette, TITLE, _text())
    sheet.words(WIDTH / 2, 20, TITLE, 20, bold=True)
    sheet.words(WIDTH / 2, 44, speed.machine())
    for column, (precision, shape) in enumerate(SHAPES.items()):
        sheet.mark(140 + 90 * column, 72, shape, palette.precisions[precision])
        sheet.words(152 + 90 * column, 72, precision, at="left")
    for panel in (TOP1, ERRORS):
        sheet.words(8, panel.top - 18, panel.name, NAME, bold=True, at="left")
        for rate in SPEEDS:
            sheet.line((x(rate), panel.top), (x(rate), panel.bottom), color=palette.rules, width=1)
        for percent in panel.ticks:
            sheet.line((LEFT, panel.y(percent)), (RIGHT, panel.y(percent)), color=palette.rules, width=1)
            sheet.words(LEFT - 8, panel.y(percent), str(percent), at="right")
    for rate in SPEEDS:
        sheet.words(x(rate), ERRORS.bottom + 16, str(rate))
    sheet.words((LEFT + RIGHT) / 2, ERRORS.bottom + 38, f"our pictures a second, batches of {BATCH}")
    for variant, own in found.items():
        top1 = TOP1.y(MMPRETRAIN[variant][0])
        sheet.line(*((x(point.rate[1]), ERRORS.y(100 * point.error[1])) for point in own.values()), width=1.2)
        sheet.words(x(own["fp32"].rate[1]) - 4, top1 - 19, f"{variant}  {MMPRETRAIN[variant][0]}", bold=True, at="left")
        for precision, point in own.items():
            low, middle, high = map(x, point.rate)
            least, usual, most = (ERRORS.y(100 * error) for error in point.error)
            for y in (top1, usual) if precision == "fp32" else (usual,):
                sheet.mark(middle, y, SHAPES[precision], palette.precisions[precision])
                if low < high:
                    sheet.spread((low, y), (high, y))
            sheet.spread((middle, least), (middle, most))
    sheet.words((LEFT + RIGHT) / 2, TOP1.bottom + 18, "bf16 and int8: top-1 on ImageNet was not measured")
    for row, line in enumerate(NOTES):
        sheet.words(WIDTH / 2, ERRORS.bottom + 68 + LINE * row, line, color=palette.lines)
    return sheet.svg()


PICTURE = Picture("accuracy-and-speed", draw, _text, width=480)
