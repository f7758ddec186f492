"""Where the time of a batch goes on the CPU, from files to scores, a bar a variant, from the first stored result."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from benchmarks.render import RESULTS

from .palette import Palette
from .picture import CannotDrawError, Picture
from .sheet import LETTER, LINE, NAME, WIDTH, WORDS, Sheet

TITLE = "Where a batch's time goes"
LEFT, RIGHT = 10, WIDTH - 10  # points: from and to, of a bar
HIGH = 34
SQUARE = 14  # points, of a color and its name


def report() -> dict[str, Any]:
    """What benchmarks/time_parts.py stored. Raises CannotDrawError if it never ran."""
    files = sorted(RESULTS.glob("*/time_parts.json"))
    if not files:
        raise CannotDrawError(
            "there is no benchmarks/results/*/time_parts.json: python -m benchmarks.time_parts OUT.json"
        )
    return json.loads(files[0].read_text(encoding="utf-8"))


def machine(found: dict[str, Any]) -> str:
    return f"{found['threads']} threads of an {found['name']} (family {found['family']}, model {found['model']})"


def _text() -> str:
    found = report()
    parts = []
    for row in found["rows"]:
        whole = sum(row["seconds"].values())
        shares = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in row["seconds"].items())
        parts.append(f"{row['variant']}, {whole * 1000:.0f} ms: {shares}")
    return (
        f"A bar a variant: how the time of {found['batch']} JPEGs in {found['precision']} on {machine(found)} is "
        f"divided. {'; '.join(parts)}."
    )


def draw(palette: Palette) -> bytes:
    found = report()
    names = [*found["rows"][0]["seconds"]]
    heading = textwrap.wrap(machine(found), int((WIDTH - 16) / (LETTER * WORDS)))
    first = 52 + LINE * len(heading)
    second = first + 8 + 24 * -(-len(names) // 2)
    sheet = Sheet(second + 84 * len(found["rows"]) + 6, palette, TITLE, _text())
    sheet.words(WIDTH / 2, 20, TITLE, 20, bold=True)
    for row, line in enumerate(heading):
        sheet.words(WIDTH / 2, 44 + LINE * row, line)
    for index, (name, (color, _)) in enumerate(zip(names, palette.parts, strict=True)):
        x, y = LEFT + index % 2 * (WIDTH - 2 * LEFT) / 2, first + 24 * (index // 2)
        sheet.bar(x, y - SQUARE / 2, x + SQUARE, y + SQUARE / 2, color, 1)
        sheet.words(x + SQUARE + 6, y, name, at="left")
    for index, row in enumerate(found["rows"]):
        whole = sum(row["seconds"].values())
        top = second + 84 * index
        sheet.words(LEFT, top + 10, row["variant"], NAME, bold=True, at="left")
        sheet.words(RIGHT, top + 10, f"{whole * 1000:.0f} ms for {found['batch']}, {found['precision']}", at="right")
        x = float(LEFT)
        for seconds, (color, ink) in zip(row["seconds"].values(), palette.parts, strict=True):
            width = (RIGHT - LEFT) * seconds / whole
            word = f"{seconds / whole:.0%}"
            sheet.bar(x, top + 26, x + width, top + 26 + HIGH, color, 1)
            if width > 11 + 10 * len(word):  # there is room for it
                sheet.words(x + width / 2, top + 26 + HIGH / 2, word, color=ink)
            x += width
    return sheet.svg()


PICTURE = Picture("time-parts", draw, _text, width=480)
