"""The colors of pictures on white and on dark pages. Hues are Okabe and Ito's, which color-blind people tell apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """name: in files' names. Words are in `ink` or `lines`, on any of `grounds`, or on a part in the part's own ink."""

    name: str
    paper: str
    ink: str
    lines: str
    plain: str  # boxes of no branch
    floor: str
    frame: str
    maps: str
    tokens: str
    coupling: str
    peers: str  # bars
    ours: str
    rules: str  # behind bars and points
    precisions: dict[str, str]
    parts: tuple[tuple[str, str], ...]  # of a bar: color and ink

    @property
    def grounds(self) -> tuple[str, ...]:
        return self.paper, self.plain, self.floor, self.frame, self.maps, self.tokens, self.coupling


LIGHT = Palette(
    name="light",
    paper="#ffffff",
    ink="#1f2328",
    lines="#545d68",
    plain="#ffffff",
    floor="#e7edf5",
    frame="#f1f3f5",
    maps="#fde8cd",
    tokens="#d6e6fb",
    coupling="#dcefd5",
    peers="#8b949e",
    ours="#0072b2",
    rules="#d0d7de",
    precisions={"fp32": "#545d68", "bf16": "#0072b2", "int8": "#b04a00"},
    parts=(
        ("#545d68", "#ffffff"),
        ("#b9c0c8", "#000000"),
        ("#e69f00", "#000000"),
        ("#0072b2", "#ffffff"),
        ("#8fd0f5", "#000000"),
        ("#a3386b", "#ffffff"),
        ("#f0e442", "#000000"),
    ),
)
DARK = Palette(
    name="dark",
    paper="#0d1117",
    ink="#e6edf3",
    lines="#9ba3ad",
    plain="#161b22",
    floor="#1b2635",
    frame="#12181f",
    maps="#4a3414",
    tokens="#163a63",
    coupling="#21452a",
    peers="#7d8590",
    ours="#56b4e9",
    rules="#30363d",
    precisions={"fp32": "#9ba3ad", "bf16": "#56b4e9", "int8": "#f0a04b"},
    parts=(
        ("#7d8590", "#000000"),
        ("#c9d1d9", "#000000"),
        ("#e69f00", "#000000"),
        ("#3e9bd6", "#000000"),
        ("#a5dcfa", "#000000"),
        ("#d97aa8", "#000000"),
        ("#f0e442", "#000000"),
    ),
)
PALETTES = LIGHT, DARK
