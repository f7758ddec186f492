"""Draws rooms.svg and way-of-an-image.svg beside this file, by matplotlib: python docs/pictures.py, or `make readme`.

The floors are those to which tests/test_rooms.py holds the tree. What a room is for is what its docstring begins with.
Sizes are those of small-p16. Lengths are points; where a picture is as wide as a phone, one is 0.7 pixels.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from conformer_fast.engines.registry import BACKENDS
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.shapes import SIDE

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGES = {"engines": ROOT / "engines", "kernels": ROOT / "kernels"}  # the others lie in conformer_fast/
EXTENSION = "csrc"  # stands beside the kernels: what is no Python has no place in test_rooms.py
STYLE = {
    "svg.fonttype": "none",  # words stay words, for search and for screen readers
    "svg.hashsalt": "conformer_fast",  # the same bytes each time
    "text.parse_math": False,
}
WIDTH = 480
NAME, WORDS = 17, 15  # sizes of letters
LETTER = 0.57  # width of a letter / its size, in wide fonts: readers have others than we do
LINE = 19
INK, LINES = "#1f2328", "#59636e"
PLAIN, FLOOR, FRAME = "#ffffff", "#e7edf5", "#f1f3f5"
MAP, TOKENS, COUPLING = "#fde8cd", "#d6e6fb", "#dcefd5"


class Sheet:
    """White paper, `height` high, whose origin is at the top left."""

    def __init__(self, height: float) -> None:
        self._figure = Figure((WIDTH / 72, height / 72), facecolor="white")
        self._axes = self._figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self._axes.axis("off")

    def box(self, left: float, top: float, right: float, bottom: float, color: str, border: str | None = LINES) -> None:
        corners = "round,pad=0,rounding_size=7"
        edge = {"edgecolor": border, "linewidth": 1.2} if border else {"linewidth": 0}
        self._axes.add_patch(FancyBboxPatch((left, top), right - left, bottom - top, corners, facecolor=color, **edge))

    def words(
        self, x: float, y: float, text: str, size: float = WORDS, *, bold: bool = False, at: str = "center"
    ) -> None:
        """One line around the height y."""
        weight = "bold" if bold else "normal"
        self._axes.text(x, y, text, size=size, weight=weight, color=INK, ha=at, va="center_baseline")

    def labeled(self, left: float, top: float, right: float, bottom: float, color: str, name: str, *lines: str) -> None:
        """A box with its name, and lines below it, in its middle."""
        self.box(left, top, right, bottom, color)
        first = (top + bottom - LINE * len(lines)) / 2
        self.words((left + right) / 2, first, name, NAME, bold=True)
        for row, line in enumerate(lines, 1):
            self.words((left + right) / 2, first + LINE * row, line)

    def arrow(self, *corners: tuple[float, float]) -> None:
        """Through these points, with its head at the last."""
        *lines, head = pairwise(corners)
        for start, end in lines:
            self._axes.plot(*zip(start, end, strict=True), color=LINES, linewidth=2, solid_capstyle="projecting")
        look = {"arrowstyle": "-|>", "mutation_scale": 16, "color": LINES, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        self._axes.add_patch(FancyArrowPatch(*head, **look))

    def svg(self, title: str) -> str:
        text = io.StringIO()
        self._figure.savefig(text, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
        return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down: the folders' names, or a module's."""
    tree = ast.parse((ROOT / "tests" / "test_rooms.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    found = [[room.value for room in floor.elts] for floor in assigned["FLOORS"].elts]  # in the order they are written
    return [[*floor, EXTENSION] if "kernels" in floor else floor for floor in found]


def shown(room: str) -> str:
    """A room's name as the file or folder that it is."""
    return f"{room}.py" if (ROOT / "conformer_fast" / f"{room}.py").is_file() else f"{room}/"


def purpose(room: str) -> str:
    """What its docstring begins with, up to the first colon, semicolon or full stop."""
    if room == EXTENSION:
        return "Preprocessing in C++"
    folder = PACKAGES.get(room, ROOT / "conformer_fast" / room)
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring, f"{file} has no docstring"
    return re.split(r"[:;.]", " ".join(docstring.split()))[0]


def rooms() -> str:
    """The house: a band for each floor, at most two rooms beside each other."""
    left, right, gap, top = 44, WIDTH - 10, 8, 66
    bands = []
    for floor in floors():
        rows = []
        for start in range(0, len(floor), 2):
            row = floor[start : start + 2]
            width = (right - left - gap * (len(row) - 1)) / len(row)
            texts = [textwrap.wrap(purpose(room), int((width - 12) / (LETTER * WORDS))) for room in row]
            rows.append((row, texts, width, LINE * (1 + max(map(len, texts))) + 12))
        bands.append((rows, sum(height for *_, height in rows) + gap * (len(rows) + 1)))
    sheet = Sheet(top + sum(height + 6 for _, height in bands))
    sheet.words(WIDTH / 2, 20, "The rooms of conformer_fast", 20, bold=True)
    sheet.words(WIDTH / 2, 46, "A room imports from lower floors only.", 16)
    arrows = []
    for number, (rows, height) in zip(range(len(bands), 0, -1), bands, strict=True):
        sheet.box(4, top, WIDTH - 4, top + height, FLOOR, None)
        sheet.words(25, top + height / 2, str(number), 22, bold=True)
        y = top + gap
        for row, texts, width, room_height in rows:
            for column, (room, lines) in enumerate(zip(row, texts, strict=True)):
                x = left + column * (width + gap)
                sheet.labeled(x, y, x + width, y + room_height, PLAIN, shown(room), *lines)
            y += room_height + gap
        arrows += [top + height / 2 - 13, top + height / 2 + 13]
        top += height + 6
    for start, end in zip(arrows[1::2], arrows[2::2], strict=False):
        sheet.arrow((25, start), (25, end))
    return sheet.svg("The rooms of conformer_fast, by floor")


def way_of_an_image() -> str:
    """From a picture through preprocessing and an engine's network, with both its branches, to the scores."""
    config = VARIANTS["small-p16"]
    grid = SIDE // config.patch_size
    tokens = f"(B, {1 + grid**2}, {config.embed_dim})"
    first_map, last_map = (
        f"(B, {config.map_channels(block)}, {side}, {side})"
        for block, side in ((1, SIDE // 4), (config.depth, grid // 2))
    )
    *others, last = BACKENDS
    middle, left, right = WIDTH / 2, 81, WIDTH - 81  # where arrows go down
    sheet = Sheet(996)
    sheet.labeled(110, 6, 370, 62, PLAIN, "picture", "JPEG, PNG, ..., of any size")
    sheet.arrow((middle, 62), (middle, 88))
    sheet.labeled(70, 88, 410, 144, PLAIN, "preprocessing/", "resize, crop, normalize; CPU or GPU")
    sheet.arrow((middle, 144), (middle, 190))
    sheet.words(middle + 12, 164, f"(B, {config.in_channels}, {SIDE}, {SIDE})", at="left")

    sheet.box(3, 190, WIDTH - 3, 876, FRAME)
    sheet.words(middle, 212, "engines/", NAME, bold=True)
    sheet.words(middle, 234, f"one of {', '.join(others)} or {last} computes:")
    sheet.labeled(110, 254, 370, 310, PLAIN, "stem", "7x7 convolution, max-pool")
    for x in (left, right):
        sheet.arrow((middle, 310), (middle, 326), (x, 326), (x, 350))
    sheet.labeled(12, 350, 230, 406, MAP, "CNN branch", "block 1: bottleneck")
    sheet.labeled(250, 350, 468, 406, TOKENS, "transformer branch", "block 1: patches, tokens")

    sheet.box(8, 448, WIDTH - 8, 704, PLAIN)
    sheet.words(middle, 469, f"blocks 2 to {config.depth}", NAME, bold=True)
    sheet.words(middle, 491, "feature coupling units (FCU)")
    for x in (left, right):
        sheet.arrow((x, 406), (x, 514))
    sheet.words(left + 12, 426, first_map, at="left")
    sheet.words(right - 12, 426, tokens, at="right")
    sheet.labeled(14, 514, 148, 590, MAP, "bottleneck", "1x1, 3x3, 1x1", "convolutions")
    sheet.labeled(14, 620, 148, 696, MAP, "bottleneck", "1x1, 3x3, 1x1", "convolutions")
    sheet.labeled(332, 514, 466, 696, TOKENS, "transformer", "attention,", "MLP")
    sheet.labeled(174, 514, 306, 590, COUPLING, "FCU down", "map to tokens:", "pool, project")
    sheet.labeled(174, 620, 306, 696, COUPLING, "FCU up", "tokens to map:", "project, repeat")
    sheet.arrow((left, 590), (left, 620))
    sheet.arrow((148, 552), (174, 552))
    sheet.arrow((306, 552), (332, 552))
    sheet.arrow((332, 658), (306, 658))
    sheet.arrow((174, 658), (148, 658))

    for x in (left, right):
        sheet.arrow((x, 696), (x, 746))
    sheet.words(left + 12, 724, last_map, at="left")
    sheet.words(right - 12, 724, tokens, at="right")
    sheet.labeled(12, 746, 230, 802, MAP, "CNN head", "mean, linear")
    sheet.labeled(250, 746, 468, 802, TOKENS, "transformer head", "class token, linear")
    for x in (left, right):
        sheet.arrow((x, 802), (x, 854), (middle, 854), (middle, 910))
    sheet.words(left + 12, 826, "conv_logits", at="left")
    sheet.words(right - 12, 826, "trans_logits", at="right")
    sheet.labeled(110, 910, 370, 986, PLAIN, "logits", "the sum of both heads:", f"(B, {config.num_classes})")
    return sheet.svg("The way of an image through conformer_fast")


PICTURES: dict[str, Callable[[], str]] = {"rooms.svg": rooms, "way-of-an-image.svg": way_of_an_image}


def drawn(name: str) -> str:
    """The text of one of PICTURES, which is the same whenever and wherever this matplotlib draws it."""
    with style.context(["default", STYLE]):
        return PICTURES[name]()


if __name__ == "__main__":
    for name in PICTURES:
        (HERE / name).write_text(drawn(name), encoding="utf-8")
