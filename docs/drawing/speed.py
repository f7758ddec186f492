"""Pictures a second of every variant, ours beside peers, one at a time and in batches of 8, from stored results.

Each peer is shown in the fastest precision that it was measured in. Bars begin at zero, on one scale; the thin line
at a bar's end is the middle half of its rounds.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.gpu.steps import VARIANTS
from benchmarks.render import speed_files

from .palette import Palette
from .picture import Picture
from .sheet import NAME, WIDTH, Sheet

FILE = speed_files()[0]
BATCHES = 1, 8
OURS = "conformer_fast"
SHOWN = {
    "eager": "PyTorch eager",
    "torch.compile": "torch.compile",
    "ONNX Runtime": "ONNX Runtime",
    "OpenVINO unfused": "OpenVINO",
    OURS: "ours",
}
TITLE = "Pictures a second"
LEFT, WIDE, ROW, NUMBER = 188, 98, 22, 42  # points: of names, of the longest bar, of a row, of the number behind a bar
Key = tuple[str, int, str, str]  # variant, batch, peer, precision


def machine() -> str:
    """The CPU of FILE, as README.md names it."""
    cpu = json.loads(FILE.read_text(encoding="utf-8"))["machine_info"]["cpu"]
    return f"{cpu['count']} cores of an {cpu['brand_raw']} (family {cpu['family']}, model {cpu['model']})"


def rates() -> dict[Key, tuple[float, float, float]]:
    """Pictures a second, of each implementation: the quartiles of its rounds, the median in the middle."""
    found = {}
    for row in json.loads(FILE.read_text(encoding="utf-8"))["benchmarks"]:
        info, stats = row["extra_info"], row["stats"]
        peer, _, precision = info["implementation"].rpartition(" ")
        if "failed" not in info and peer in SHOWN:
            seconds = stats["q3"], stats["median"], stats["q1"]
            key = info["variant"], info["batch"], peer, precision
            found[key] = tuple(info["batch"] / each for each in seconds)
    return found


def fastest(found: dict[Key, Any]) -> list[tuple[str, str]]:
    """Each peer with the precision that was fastest in most points."""
    chosen = []
    for peer in SHOWN:
        winners = [
            max((key for key in found if key[:3] == (variant, batch, peer)), key=lambda key: found[key][1])[3]
            for variant in VARIANTS
            for batch in BATCHES
        ]
        chosen.append((peer, statistics.mode(winners)))
    return chosen


def _text() -> str:
    found = rates()
    rows = fastest(found)
    parts = []
    for variant in VARIANTS:
        own, *others = [
            [found[variant, batch, peer, precision][1] for batch in BATCHES] for peer, precision in reversed(rows)
        ]
        best = [max(each) for each in zip(*others, strict=True)]
        parts.append(
            f"{variant}: ours {own[0]:.3g} and {own[1]:.3g}, the fastest other {best[0]:.3g} and {best[1]:.3g}"
        )
    peers = ", ".join(f"{SHOWN[peer]} in {precision}" for peer, precision in rows)
    return (
        f"Bars of pictures a second, one at a time and in batches of {BATCHES[1]}, on {machine()}: {peers}. "
        f"{'; '.join(parts)}."
    )


def draw(palette: Palette) -> bytes:
    found = rates()
    rows = fastest(found)
    scale = WIDE / max(high for _, _, high in found.values())
    columns = [LEFT + index * (WIDE + NUMBER + 8) for index in range(len(BATCHES))]
    group = 32 + ROW * len(rows)
    sheet = Sheet(124 + group * len(VARIANTS), palette, TITLE, _text())
    sheet.words(WIDTH / 2, 20, TITLE, 20, bold=True)
    sheet.words(WIDTH / 2, 44, machine())
    for x, batch in zip(columns, BATCHES, strict=True):
        sheet.words(x, 76, "one at a time" if batch == 1 else f"batches of {batch}", at="left")
    top = 92.0
    for variant in VARIANTS:
        sheet.line((8, top), (WIDTH - 8, top), color=palette.rules, width=1)
        sheet.words(8, top + 16, variant, NAME, bold=True, at="left")
        for row, (peer, precision) in enumerate(rows):
            y, ours = top + 38 + ROW * row, peer == OURS
            sheet.words(LEFT - 8, y, f"{SHOWN[peer]} {precision}", bold=ours, at="right")
            for x, batch in zip(columns, BATCHES, strict=True):
                low, middle, high = found[variant, batch, peer, precision]
                end = x + middle * scale
                sheet.bar(x, y - 7, end, y + 7, palette.ours if ours else palette.peers)
                for color, width in ((palette.paper, 4), (palette.ink, 1.5)):  # seen on the bar and beside it
                    sheet.line((x + low * scale, y), (x + high * scale, y), color=color, width=width)
                number = f"{middle:.0f}" if middle >= 10 else f"{middle:.1f}"
                sheet.words(max(end, x + high * scale) + 5, y, number, bold=ours, at="left")
        top += group
    sheet.words(WIDTH / 2, top + 14, "thin lines: the middle half of the rounds", color=palette.lines)
    return sheet.svg()


PICTURE = Picture("speed", draw, _text, width=480)
