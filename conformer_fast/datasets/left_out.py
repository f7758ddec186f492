"""What a listing of pictures leaves out, said in one line."""

from __future__ import annotations

import warnings
from collections import defaultdict

from ..errors import first_few


class LeftOut:
    """Names, by the reason why they do not count."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """reason: in the plural, such as "hidden files"."""
        self._names[reason].append(name)

    def say(self, where: str) -> None:
        """Warns of all of them, if there are any."""
        parts = [
            f"{reason}: {len(names)} ({first_few(sorted(names))})" for reason, names in sorted(self._names.items())
        ]
        if parts:
            warnings.warn(f"{where}: left out {'; '.join(parts)}", stacklevel=2)
