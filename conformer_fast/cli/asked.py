"""What is told of a command line before it is understood. It imports next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a program reads the answer."""
    pairs = pairwise(arguments)
    return "--json" in arguments or "--format=json" in arguments or ("--format", "json") in pairs
