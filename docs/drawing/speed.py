"""Pictures a second of every variant, ours beside peers, one at a time and in batches of 8, from stored results.

Each peer is shown in the fastest precision that it was measured in, OpenVINO's throughput mode in batches alone. Bars
begin at zero, on one scale; the thin line at a bar's end is the middle half of its rounds. Bars are of each peer's own
rounds, which the ratios of benchmarks/render.py are not: those are of rounds in which two took turns.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.gpu.steps import VARIANTS
from benchmarks.render import cpu_files

from .palette import Palette
from .picture import Picture
from .sheet import LINE, NAME, WIDTH, Sheet

FILE = cpu_files("speed.json")[0]
BATCHES = 1, 8
OURS = "conformer_fast"
THROUGHPUT = "OpenVINO unfused, streams"  # the batch as single pictures, side by side
SHOWN = {
    "eager": "PyTorch eager",
    "torch.compile": "torch.compile",
    "ONNX Runtime": "ONNX Runtime",
    "OpenVINO unfused": "OpenVINO",
    THROUGHPUT: "OpenVINO throughput",
    OURS: "ours",
}
TITLE = "Pictures a second"
LEFT, WIDE, ROW, NUMBER = 214, 85, 22, 42  # points: of names, of the longest bar, of a row, of the number behind a bar
NOTES = (
    "thin lines: the middle half of the rounds",
    "bars: medians of each one's own rounds; ratios to",
    "OpenVINO in tables: of rounds in turns, as speed drifts",
)
Key = tuple[str, int, str, str]  # variant, batch, peer, precision


def machine() -> str:
    """The CPU of FILE, as README.md names it."""
    cpu = json.loads(FILE.read_text(encoding="utf-8"))["machine_info"]["cpu"]
    return f"{cpu['count']} cores of an {cpu['brand_raw']} (family {cpu['family']}, model {cpu['model']})"


def rates() -> dict[Key, tuple[float, float, float]]:
    """Pictures a second, of each implementation: the quartiles of its rounds, the median in the middle. Of THROUGHPUT
    only in batches: of one picture it has nothing to run side by side."""
    found = {}
    for row in json.loads(FILE.read_text(encoding="utf-8"))["benchmarks"]:
        info, stats = row["extra_info"], row["stats"]
        name, comma, mode = info["implementation"].partition(", ")
        peer, _, precision = name.rpartition(" ")
        peer += comma + mode
        if "failed" not in info and peer in SHOWN and (peer != THROUGHPUT or info["batch"] > 1):
            seconds = stats["q3"], stats["median"], stats["q1"]
            key = info["variant"], info["batch"], peer, precision
            found[key] = tuple(info["batch"] / each for each in seconds)
    return found


def fastest(found: dict[Key, Any]) -> list[tuple[str, str]]:
    """Each peer with the precision that was fastest in most points."""
    chosen = []
    for peer in SHOWN:
        winners = [
            max(keys, key=lambda key: found[key][1])[3]
            for variant in VARIANTS
            for batch in BATCHES
            if (keys := [key for key in found if key[:3] == (variant, batch, peer)])
        ]
        chosen.append((peer, statistics.mode(winners)))
    return chosen


def _text() -> str:
    found = rates()
    rows = fastest(found)
    parts = []
    for variant in VARIANTS:
        own, best = (
            " and ".join(f"{_most(found, variant, batch, ours):.3g}" for batch in BATCHES) for ours in (True, False)
        )
        parts.append(f"{variant}: ours {own}, the fastest other {best}")
    peers = ", ".join(f"{SHOWN[peer]} in {precision}" for peer, precision in rows)
    return (
        f"Bars of pictures a second, one at a time and in batches of {BATCHES[1]}, on {machine()}: {peers}. "
        f"{'; '.join(parts)}. OpenVINO's throughput mode is drawn in batches only. Each bar is the median of its own "
        "rounds, on a machine whose speed drifts; the ratios to OpenVINO in the tables are of rounds in turns."
    )


def _most(found: dict[Key, tuple[float, float, float]], variant: str, batch: int, ours: bool) -> float:
    """Pictures a second of ours, or of the fastest other, in any precision."""
    return max(rate for key, (_, rate, _) in found.items() if key[:2] == (variant, batch) and (key[2] == OURS) == ours)


def draw(palette: Palette) -> bytes:
    found = rates()
    rows = fastest(found)
    scale = WIDE / max(high for _, _, high in found.values())
    columns = [LEFT + index * (WIDE + NUMBER + 8) for index in range(len(BATCHES))]
    group = 32 + ROW * len(rows)
    sheet = Sheet(105 + LINE * len(NOTES) + group * len(VARIANTS), palette, TITLE, _text())
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
                if (variant, batch, peer, precision) not in found:
                    continue
                low, middle, high = found[variant, batch, peer, precision]
                end = x + middle * scale
                sheet.bar(x, y - 7, end, y + 7, palette.ours if ours else palette.peers)
                for color, width in ((palette.paper, 4), (palette.ink, 1.5)):  # seen on the bar and beside it
                    sheet.line((x + low * scale, y), (x + high * scale, y), color=color, width=width)
                number = f"{middle:.0f}" if middle >= 10 else f"{middle:.1f}"
                sheet.words(max(end, x + high * scale) + 5, y, number, bold=ours, at="left")
        top += group
    for row, line in enumerate(NOTES):
        sheet.words(WIDTH / 2, top + 14 + LINE * row, line, color=palette.lines)
    return sheet.svg()


PICTURE = Picture("speed", draw, _text, width=480)
