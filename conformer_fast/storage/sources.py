"""The sha256 of source files: whether what was kept was computed by the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sources_sha256(folders: Iterable[Path]) -> str | None:
    """Of the modules in these folders as they are on disk; None if one of them has none."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(folder.glob("*.py"))
        if not files:
            return None
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest() + file.name.encode())
    return digest.hexdigest()
