"""What each picture says of itself: how it is drawn, called and described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style

from .palette import LIGHT, PALETTES, Palette

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
STYLE = {
    "svg.fonttype": "none",  # words stay words, for search and for screen readers
    "svg.hashsalt": "conformer_fast",  # the same bytes each time
    "text.parse_math": False,
}


class CannotDrawError(Exception):
    """What is missing for a picture here, and where it comes from."""


@dataclass(frozen=True)
class Picture:
    """draw:   its file's content for a palette, in matplotlib's default style and STYLE; raises CannotDrawError
    text:   the alternative text, one paragraph
    width:  pixels on a page
    ending: of its files' names. A "png" is made by running the product
    both:   whether one file is for light and dark pages
    """

    name: str
    draw: Callable[[Palette], bytes]
    text: Callable[[], str]
    width: int
    ending: str = "svg"
    both: bool = False

    @property
    def palettes(self) -> tuple[Palette, ...]:
        return (LIGHT,) if self.both else PALETTES

    def file(self, palette: Palette) -> Path:
        return FOLDER / (f"{self.name}.{self.ending}" if self.both else f"{self.name}-{palette.name}.{self.ending}")

    def content(self, palette: Palette) -> bytes:
        with style.context(["default", STYLE]):
            return self.draw(palette)
