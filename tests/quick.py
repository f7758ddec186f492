"""What `make quick` runs: the first case of each test that takes a moment, for a first word on a change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEFT_OUT = ()  # below tests/: what runs whole models, commands or processes


def is_left_out(path: Path) -> bool:
    return path.relative_to(HERE).as_posix() in LEFT_OUT


def first_cases(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """Of each test that is not marked slow."""
    seen = set()
    for item in items:
        test = item.path, item.cls, item.originalname
        if not item.get_closest_marker("slow") and test not in seen:
            seen.add(test)
            yield item
