"""Our docstrings as Markdown, for the reference: lines of "name: what it is", aligned in the source, as lists."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ITEM = re.compile(r"(\w+(?:, \w+)*):\s+(\S.*)")


class Lists(Extension):
    """The docstring of each object that the reference shows."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(docstring: str) -> str:
    """Each paragraph but the first that starts with an item is a list."""
    first, *others = docstring.split("\n\n")
    return "\n\n".join([first, *(_list(part) if ITEM.match(part) else part for part in others)])


def _list(paragraph: str) -> str:
    """What is no item goes on with the one before."""
    lines: list[str] = []
    for line in paragraph.splitlines():
        item = ITEM.fullmatch(line)
        if item:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        else:
            lines.append(f"    {line.strip()}")
    return "\n".join(lines)
