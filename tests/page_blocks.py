"""The fenced code of a page of docs/, which tests run as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs"


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, code) of each block in one of these languages, in order. What nobody can run here is in others: "py"
    and "bash" look the same."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in languages]
