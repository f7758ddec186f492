"""Where documents show pictures: between `<!-- picture: NAME -->` and `<!-- /picture -->` stand its files and its
text.

GitHub shows the file for the reader's light or dark pages. Documents link a picture by an `<a href>` around the
markers.
"""

from __future__ import annotations

import html
import os
import re
import textwrap
from pathlib import Path

from .album import PICTURES
from .palette import DARK, LIGHT
from .picture import ROOT, Picture

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
SHOWN = re.compile(r"<!-- picture: ([\w-]+) -->\n.*?<!-- /picture -->", re.DOTALL)


def embedded(document: Path) -> str:
    """What is in `document`, with its pictures as they are described now. Raises KeyError for an unknown one."""

    def lines(found: re.Match[str]) -> str:
        shown = "\n".join(_lines(PICTURES[found[1]], document.parent))
        return f"<!-- picture: {found[1]} -->\n{shown}\n<!-- /picture -->"

    return SHOWN.sub(lines, document.read_text(encoding="utf-8"))


def _lines(picture: Picture, folder: Path) -> list[str]:
    if not picture.file(LIGHT).is_file():
        return ["Not drawn yet."]
    light, dark = (os.path.relpath(picture.file(palette), folder) for palette in (LIGHT, DARK))
    image = f'<img src="{light}" width="{picture.width}" align="top" alt="{_escaped(picture.text())}">'
    others = [] if picture.both else [f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">']
    return [
        "<picture>",
        *others,
        *textwrap.wrap(image, 120, break_long_words=False, break_on_hyphens=False),
        "</picture>",
    ]


def _escaped(text: str) -> str:
    """As an attribute's value, with apostrophes as they are."""
    return html.escape(text, quote=False).replace('"', "&quot;")
