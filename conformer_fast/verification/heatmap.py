"""A Diff as a picture: SQNR by block, implementation and precision, drawn by matplotlib (the extra `report`).

Each cell is a number on its color. The colors are viridis, whose lightness rises evenly, so that they keep their order
for people with a color-vision deficiency and in gray. Their scale is the same in each picture, so that two can be
compared. What is over its bound has a star and a frame.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import BackendError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

    from .diff import Column, Diff

HIGHEST = 80.0  # dB: the last color, and of all above; the first is of 0 and all below
COLORS = 40  # 2 dB each
DARK = 36.0  # dB below which words are white: they have more contrast there
WIDTH, HEIGHT = 0.95, 0.24  # of a cell, in inches
BETWEEN_PRECISIONS = 0.15  # inches
LABELS = 1.0  # inches left of the cells
SCALE = 1.8  # inches from its one end to the other
LETTERS = 15  # an inch, on average
LEAST_LETTERS = 90  # of a line of notes
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",  # words stay words, for search and for screen readers
    "svg.hashsalt": "conformer_fast",  # the same data give the same bytes
    "text.parse_math": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
LEGEND = "dB, more is better; * in a frame: over its bound; -: was not run"
MEANING = (
    "k.tokens, k.map: what the transformer and the convolution branch pass on after block k; "
    "k.fcu_down, k.fcu_up: what the coupling units give to the one and to the other"
)


def check_matplotlib() -> None:
    """Raises BackendError when matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401, to see that it is there
    except ImportError as error:
        raise BackendError(f'heat maps need matplotlib ({error}): pip install "conformer-fast[report]"') from error


def svg(diff: Diff, title: str = "SQNR against the reference in float64", *, dark: bool = False) -> str:
    """The picture as the text of an SVG file, which needs nothing else and is the same for the same `diff`.

    title: its heading
    dark:  white words on black

    Raises BackendError when matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib import style

    text = io.StringIO()
    with style.context(["default", *(["dark_background"] if dark else []), STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts may have it
        figure = _drawn(diff, _printable(title))
        metadata = {"Title": _printable(title), "Description": _described(diff), "Date": None, "Creator": None}
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.2, metadata=metadata)
    return text.getvalue()


def _drawn(diff: Diff, title: str) -> Figure:
    """The figure proper is as large as the cells; headings, notes and the scale stand around it."""
    from matplotlib.figure import Figure

    groups = diff.by_precision
    width = WIDTH * len(diff.columns) + BETWEEN_PRECISIONS * (len(groups) - 1)
    height = HEIGHT * len(diff.names)
    figure, left = Figure((width, height)), 0.0
    for precision, columns in groups.items():
        axes = figure.add_axes((left / width, 0, WIDTH * len(columns) / width, 1))
        axes.set_title(precision, loc="left", weight="bold")
        mesh = _cells(axes, columns, diff.names)
        if left:
            axes.set_yticks([])
        left += WIDTH * len(columns) + BETWEEN_PRECISIONS
    scale = figure.add_axes((1 + 0.15 / width, 1 - SCALE / height, 0.15 / width, SCALE / height))
    figure.colorbar(mesh, scale, extend="both", label="SQNR, dB")
    letters = max(LEAST_LETTERS, int((LABELS + width) * LETTERS))
    notes = [
        line
        for note in (MEANING, *(column.summary for column in diff.columns))
        for line in textwrap.wrap(_printable(note), letters, subsequent_indent="\xa0" * 4)  # SVG drops other spaces
    ]
    x = -LABELS / width
    figure.text(x, 1 + 0.85 / height, title, size=13, weight="bold")
    figure.text(x, 1 + 0.6 / height, _described(diff))
    figure.text(x, min(0, 1 - SCALE / height) - 0.2 / height, "\n".join(notes), va="top", size=8, linespacing=1.6)
    return figure


def _cells(axes: Axes, columns: Sequence[Column], names: Sequence[str]) -> QuadMesh:
    """Draws the cells of one precision with their headings."""
    import matplotlib

    sqnr = [[column.rows[name].sqnr_db if column.report else math.nan for column in columns] for name in names]
    shown = [[min(max(value, 0.0), HIGHEST) for value in row] for row in sqnr]  # NaN stays
    colors = matplotlib.colormaps["viridis"].resampled(COLORS)
    paper = axes.get_facecolor()
    mesh = axes.pcolormesh(shown, cmap=colors, vmin=0, vmax=HIGHEST, edgecolors=[paper], linewidth=1)
    for y, name in enumerate(names):
        if y and name.split(".")[0] != names[y - 1].split(".")[0]:
            axes.axhline(y, color=paper, linewidth=3)
        for x, column in enumerate(columns):
            _word(axes, column, name, x, y)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [column.implementation for column in columns])
    axes.set_yticks([y + 0.5 for y in range(len(names))], names)
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return mesh


def _word(axes: Axes, column: Column, name: str, x: int, y: int) -> None:
    """Writes into one cell, and frames it if it is over its bound."""
    from matplotlib.patches import Rectangle

    row = column.rows.get(name)
    if row is None:
        axes.text(x + 0.5, y + 0.5, "-", ha="center", va="center")
        return
    word = "not finite" if math.isnan(row.sqnr_db) else f"{row.sqnr_db:.1f}"
    ink = "white" if row.sqnr_db < DARK else "black"
    axes.text(x + 0.5, y + 0.5, word if row.within else f"{word}*", ha="center", va="center_baseline", color=ink)
    if not row.within:
        for color, thickness in (("white", 3.5), ("black", 1.5)):  # stands out on every color
            frame = Rectangle((x + 0.03, y + 0.1), 0.94, 0.8, fill=False, edgecolor=color, linewidth=thickness)
            axes.add_patch(frame)


def _described(diff: Diff) -> str:
    return f"{diff.images} image(s) of {diff.height}x{diff.width}; {LEGEND}"


def _printable(text: str) -> str:
    """`text` in one line and without the characters that XML does not have, which nothing can escape."""
    allowed = "\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff"
    return re.sub(f"[^{allowed}]+", " ", text)
