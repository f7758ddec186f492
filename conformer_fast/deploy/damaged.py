"""A picture that could not be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damaged:
    """A picture that could not be used, and what is wrong with it."""

    path: str
    error: str
