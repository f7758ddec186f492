"""A sheet of paper to draw on, by matplotlib, as wide as a phone and as high as it needs to be."""

from __future__ import annotations

import html
import io
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .palette import Palette

WIDTH = 480
NAME, WORDS = 17, 15  # sizes of letters
LETTER = 0.57  # width of a letter / its size, in wide fonts: readers have others than we do
LINE = 19


class Sheet:
    """`height` high, with the origin at its top left.

    title, text: what the picture is called, and what it shows to those who do not see it
    """

    def __init__(self, height: float, palette: Palette, title: str, text: str) -> None:
        self.palette, self._title, self._text = palette, title, text
        self._figure = Figure((WIDTH / 72, height / 72), facecolor=palette.paper)
        self._axes = self._figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self._axes.axis("off")

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        color: str,
        border: bool = True,
        *,
        dashed: bool = False,
    ) -> None:
        corners = "round,pad=0,rounding_size=7"
        edge = {"edgecolor": self.palette.lines, "linewidth": 1.2} if border else {"linewidth": 0}
        pattern = (0, (4, 3)) if dashed else "-"
        self._axes.add_patch(
            FancyBboxPatch((left, top), right - left, bottom - top, corners, facecolor=color, linestyle=pattern, **edge)
        )

    def bar(self, left: float, top: float, right: float, bottom: float, color: str, width: float = 0) -> None:
        """width: of its border"""
        edge = {"edgecolor": self.palette.lines, "linewidth": width}
        self._axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor=color, **edge))

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: float = WORDS,
        *,
        bold: bool = False,
        at: str = "center",
        color: str | None = None,
    ) -> None:
        """One line around the height y. color: the palette's ink, if it is not said."""
        weight = "bold" if bold else "normal"
        ink = color or self.palette.ink
        self._axes.text(x, y, text, size=size, weight=weight, color=ink, ha=at, va="center_baseline")

    def labeled(self, left: float, top: float, right: float, bottom: float, color: str, name: str, *lines: str) -> None:
        """A box with its name, and lines below it, in its middle."""
        self.box(left, top, right, bottom, color)
        first = (top + bottom - LINE * len(lines)) / 2
        self.words((left + right) / 2, first, name, NAME, bold=True)
        for row, line in enumerate(lines, 1):
            self.words((left + right) / 2, first + LINE * row, line)

    def line(self, *points: tuple[float, float], color: str | None = None, width: float = 2) -> None:
        """Through these points, in the palette's color of lines if none is said."""
        look = {"color": color or self.palette.lines, "linewidth": width, "solid_capstyle": "projecting"}
        self._axes.plot(*zip(*points, strict=True), **look)

    def mark(self, x: float, y: float, shape: str, color: str) -> None:
        """shape: as matplotlib calls it"""
        edge = {"markeredgecolor": self.palette.paper, "markeredgewidth": 0.8}
        self._axes.plot([x], [y], shape, color=color, markersize=9, zorder=3, **edge)

    def spread(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From low to high, over marks: a thin line with an end on each side."""
        across = (3, 0) if start[0] == end[0] else (0, 3)
        ends = [((x - across[0], y - across[1]), (x + across[0], y + across[1])) for x, y in (start, end)]
        for points in ((start, end), *ends):
            self._axes.plot(*zip(*points, strict=True), color=self.palette.ink, linewidth=1.3, zorder=4)

    def arrow(self, *corners: tuple[float, float]) -> None:
        """Through these points, with its head at the last."""
        *lines, head = pairwise(corners)
        for start, end in lines:
            self.line(start, end)
        color = self.palette.lines
        look = {"arrowstyle": "-|>", "mutation_scale": 16, "color": color, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        self._axes.add_patch(FancyArrowPatch(*head, **look))

    def svg(self) -> bytes:
        text = io.StringIO()
        metadata = {"Title": self._title, "Date": None, "Creator": None}
        self._figure.savefig(text, format="svg", metadata=metadata)
        return described(text.getvalue(), self._text)


def described(svg: str, text: str) -> bytes:
    """What matplotlib drew, with `text` beside its title for those who do not see it."""
    svg = svg.replace("<svg ", '<svg role="img" aria-labelledby="title text" ', 1)
    svg = svg.replace("<title>", '<title id="title">', 1)
    svg = svg.replace("</title>", f'</title>\n <desc id="text">{html.escape(text)}</desc>', 1)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines()).encode()
