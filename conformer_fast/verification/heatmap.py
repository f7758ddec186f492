"""A Diff as a picture: one SVG of SQNR by block, implementation and precision.

Each cell is a number on its color. The colors are those of matplotlib's viridis (van der Walt and Smith), whose
lightness rises evenly, so that they keep their order for people with a color-vision deficiency and in gray. Their
scale is the same in each picture, so that two can be compared. What is over its bound has a frame; what did not run is
hatched.
"""

from __future__ import annotations

import math
import re
import textwrap
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from .diff import Column, Diff

Color = tuple[float, float, float]  # red, green and blue, 0 to 1

COLORS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
HIGHEST = 80.0  # dB: the last color, and of all above; the first is of 0 and all below
INK, PAPER = "#000000", "#ffffff"
WIDTH, HEIGHT = 84, 19  # of a cell with the line around it, in pixels
BETWEEN_BLOCKS, BETWEEN_PRECISIONS = 4, 12
LEFT, MARGIN, LINE = 112, 16, 17
LETTER = 6.0  # the width of one, on average
LEAST_COLUMNS = 5  # room for the heading and the legend


def svg(diff: Diff, title: str = "SQNR against the reference in float64") -> str:
    """The picture as the text of an SVG file, which needs nothing else. title: its heading."""
    columns = len(diff.columns) * WIDTH + (len(diff.by_precision) - 1) * BETWEEN_PRECISIONS
    width = LEFT + max(columns, LEAST_COLUMNS * WIDTH) + MARGIN
    canvas = _Canvas(width)
    canvas.add("title").text = _printable(title)
    canvas.define()
    paper = canvas.rectangle(0, 0, width, 0, PAPER)
    canvas.text(MARGIN, 26, title, size=16, weight="bold")
    canvas.text(MARGIN, 44, f"{diff.images} image(s) of {diff.height}x{diff.width}; dB, more is better")
    bottom = _cells(canvas, diff)
    bottom = _legend(canvas, bottom + 24)
    bottom = _notes(canvas, diff, bottom + 30)
    paper.set("height", str(bottom))
    return canvas.written(bottom)


def color_of(sqnr_db: float) -> Color:
    """The color of an SQNR."""
    place = min(max(sqnr_db / HIGHEST, 0.0), 1.0) * (len(COLORS) - 1)
    below = min(int(place), len(COLORS) - 2)
    red, green, blue = (
        low + (high - low) * (place - below)
        for low, high in zip(_rgb(COLORS[below]), _rgb(COLORS[below + 1]), strict=True)
    )
    return red, green, blue


def ink_on(color: Color) -> str:
    """Black or white: what has more contrast."""
    return max((INK, PAPER), key=lambda ink: contrast(_rgb(ink), color))


def contrast(one: Color, other: Color) -> float:
    """The contrast ratio of two colors, from 1 to 21 (WCAG 2.2, definitions of contrast ratio, relative luminance)."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


class _Canvas:
    """An SVG under construction. Positions and sizes are in pixels, from the upper left corner."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
        self._root.set("font-family", "system-ui, 'DejaVu Sans', sans-serif")

    def add(self, element: str, **attributes: object) -> ElementTree.Element:
        named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
        return ElementTree.SubElement(self._root, element, named)

    def define(self) -> None:
        """The hatching of what did not run, and the legend's colors."""
        definitions = self.add("defs")
        hatching = {"id": "hatching", "width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
        pattern = ElementTree.SubElement(definitions, "pattern", hatching)
        ElementTree.SubElement(pattern, "path", {"d": "M0 6L6 0", "stroke": "#999999"})
        scale = ElementTree.SubElement(definitions, "linearGradient", {"id": "scale"})
        for index, color in enumerate(COLORS):
            stop = {"offset": f"{index / (len(COLORS) - 1):.4f}", "stop-color": color}
            ElementTree.SubElement(scale, "stop", stop)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str) -> ElementTree.Element:
        return self.add("rect", x=x, y=y, width=width, height=height, fill=fill)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        """Black on white, so that it stands out on every color."""
        for thickness, color in ((4, PAPER), (2, INK)):
            inner = self.rectangle(x + 2, y + 2, width - 4, height - 4, "none")
            inner.set("stroke", color)
            inner.set("stroke-width", str(thickness))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 12,
        weight: str = "normal",
        anchor: str = "start",
        ink: str = INK,
    ) -> None:
        element = self.add("text", x=x, y=y, font_size=size, font_weight=weight, text_anchor=anchor, fill=ink)
        element.text = _printable(words)

    def written(self, height: float) -> str:
        for name, value in (("width", self.width), ("height", height), ("viewBox", f"0 0 {self.width} {height}")):
            self._root.set(name, str(value))
        ElementTree.indent(self._root, " ")
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"


def _cells(canvas: _Canvas, diff: Diff) -> int:
    """Draws the table with its headings; returns where it ends."""
    tops, y, earlier = {}, 100, ""
    for name in diff.names:
        block = name.split(".")[0]
        y += BETWEEN_BLOCKS if block != earlier and earlier else 0
        tops[name], earlier = y, block
        canvas.text(LEFT - 8, y + HEIGHT - 5, name, anchor="end")
        y += HEIGHT
    x = LEFT
    for precision, columns in diff.by_precision.items():
        canvas.text(x, 72, precision, size=14, weight="bold")
        for column in columns:
            canvas.text(x + WIDTH / 2, 92, column.implementation, anchor="middle")
            for name, top in tops.items():
                _cell(canvas, column, name, x, top)
            x += WIDTH
        x += BETWEEN_PRECISIONS
    return y


def _cell(canvas: _Canvas, column: Column, name: str, x: float, y: float) -> None:
    row = column.rows.get(name)
    if row is None:
        canvas.rectangle(x, y, WIDTH - 1, HEIGHT - 1, "url(#hatching)")
        return
    known = not math.isnan(row.sqnr_db)
    color = color_of(row.sqnr_db) if known else _rgb(PAPER)
    cell = canvas.rectangle(x, y, WIDTH - 1, HEIGHT - 1, _hex(color))
    tip = f"{name}, {column.implementation} {column.precision}: error {row.error:.2g}, bound {row.bound:.2g}"
    ElementTree.SubElement(cell, "title").text = tip
    if not row.within:
        canvas.frame(x, y, WIDTH - 1, HEIGHT - 1)
    words = f"{row.sqnr_db:.1f}" if known else "not finite"
    canvas.text(x + WIDTH / 2, y + HEIGHT - 5, words, anchor="middle", ink=ink_on(color))


def _legend(canvas: _Canvas, y: int) -> int:
    long = 3 * WIDTH
    canvas.rectangle(LEFT, y, long, HEIGHT, "url(#scale)")
    for tick in range(0, int(HIGHEST) + 1, 20):
        canvas.text(LEFT + long * tick / HIGHEST, y + HEIGHT + 14, str(tick), anchor="middle")
    canvas.text(LEFT + long + 12, y + HEIGHT + 14, "dB and more")
    canvas.frame(LEFT, y + HEIGHT + 26, 28, HEIGHT)
    canvas.text(LEFT + 36, y + HEIGHT + 40, "over its bound")
    canvas.rectangle(LEFT + 150, y + HEIGHT + 26, 28, HEIGHT, "url(#hatching)")
    canvas.text(LEFT + 186, y + HEIGHT + 40, "did not run, see below")
    return y + 2 * HEIGHT + 26


def _notes(canvas: _Canvas, diff: Diff, y: int) -> int:
    """What the rows are, and in one line each what the columns are."""
    meaning = (
        "k.tokens, k.map: what the transformer and the convolution branch pass on after block k; "
        "k.fcu_down, k.fcu_up: what the coupling units give to the one and to the other"
    )
    room = int((canvas.width - 2 * MARGIN) / LETTER)
    for note in (meaning, *(column.summary for column in diff.columns)):
        for line in textwrap.wrap(_printable(note), room, subsequent_indent="    "):
            canvas.text(MARGIN, y, line, size=11)
            y += LINE
    return y


def _printable(text: str) -> str:
    """`text` in one line and without the characters that XML does not have, which nothing can escape."""
    allowed = "\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff"
    return re.sub(f"[^{allowed}]+", " ", text)


def _rgb(color: str) -> Color:
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _hex(color: Color) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)


def _luminance(color: Color) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
