"""The rooms of the code on their floors.

The floors are those to which tests/test_rooms.py holds the tree. What a room is for is what its docstring begins
with.
"""

from __future__ import annotations

import ast
import re
import textwrap

from .palette import Palette
from .picture import ROOT, Picture
from .sheet import LETTER, LINE, WIDTH, WORDS, Sheet

PACKAGES = {"engines": ROOT / "engines", "kernels": ROOT / "kernels"}  # the others lie in conformer_fast/
EXTENSION = "csrc"  # stands beside the kernels: what is no Python has no place in test_rooms.py
TEXT = (
    "The rooms of conformer_fast on their floors. A room imports from lower floors only. The same stands above as "
    "a table."
)


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


def draw(palette: Palette) -> bytes:
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
    whole = top + sum(height + 6 for _, height in bands)
    sheet = Sheet(whole, palette, "The rooms of conformer_fast, by floor", TEXT)
    sheet.words(WIDTH / 2, 20, "The rooms of conformer_fast", 20, bold=True)
    sheet.words(WIDTH / 2, 46, "A room imports from lower floors only.", 16)
    arrows = []
    for number, (rows, height) in zip(range(len(bands), 0, -1), bands, strict=True):
        sheet.box(4, top, WIDTH - 4, top + height, palette.floor, border=False)
        sheet.words(25, top + height / 2, str(number), 22, bold=True)
        y = top + gap
        for row, texts, width, room_height in rows:
            for column, (room, lines) in enumerate(zip(row, texts, strict=True)):
                x = left + column * (width + gap)
                sheet.labeled(x, y, x + width, y + room_height, palette.plain, shown(room), *lines)
            y += room_height + gap
        arrows += [top + height / 2 - 13, top + height / 2 + 13]
        top += height + 6
    for start, end in zip(arrows[1::2], arrows[2::2], strict=False):
        sheet.arrow((25, start), (25, end))
    return sheet.svg()


PICTURE = Picture("rooms", draw, lambda: TEXT, width=400)
