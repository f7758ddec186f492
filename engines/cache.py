"""Built engines kept on disk, each beside its sha256 and the fields that it was built from.

A key is the digest of the fields that decide what an engine computes and which runtime may load it. An engine whose
bytes no longer match its sha256 is built again with a warning; the least recently used make room for new ones.

It is our own because cache libraries (diskcache, joblib) hand out pickles, or whatever they find, and an engine is
run by native code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformer_fast.storage.hashed import SUFFIX, HashedFile
from conformer_fast.storage.paths import cache_root

LIMIT_BYTES = 4 << 30  # of all entries together; the least recently used go first
REMEMBERED = ".text"  # what `remembered` keeps: some bytes, which are not counted


@dataclass(frozen=True)
class CachedEngine:
    """One built engine on disk. size is in bytes, used is the last use in seconds since the epoch."""

    key: str
    fields: Mapping[str, Any]
    size: int
    used: float


def cached(fields: Mapping[str, Any], build: Callable[[], bytes]) -> bytes:
    """The engine built from `fields` (JSON values): from disk, else from build(), which is then kept.

    Whoever asks for the same engine meanwhile waits and finds it built. A folder that cannot be written, or a full
    disk, is a warning and costs only the keeping.
    """
    file = HashedFile(engines_folder() / f"{key_of(fields)}.engine")
    with file.locked_if_writable():
        engine = file.read_or_warn("building it again")
        if engine is not None:
            with suppress(OSError):  # it may just have been removed to make room, or may not be changed
                os.utime(file.path)
            return engine
        engine = build()
        _make_room(file.path.parent, len(engine))
        file.write_or_warn("engines", engine, fields)
        return engine


def remembered(fields: Mapping[str, Any], compute: Callable[[], str]) -> str:
    """A short text that `fields` (JSON values) decide, such as a hash: from disk, else from compute(), then kept."""
    file = HashedFile(engines_folder() / f"{key_of(fields)}{REMEMBERED}")
    text = file.read_or_warn("computing it again")
    if text is None:
        text = compute().encode()
        file.write_or_warn("hashes of graphs", text)
    return text.decode()


def key_of(fields: Mapping[str, Any]) -> str:
    """32 hex digits that name an entry."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def cached_engines() -> list[CachedEngine]:
    """What is on disk, most recently used first. Damaged entries are left out."""
    found = []
    for path in engines_folder().glob("*.engine"):
        with suppress(OSError):  # removed by another process
            fields, stat = HashedFile(path).fields(), path.stat()
            if fields is not None:
                found.append(CachedEngine(path.stem, fields, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear_cache() -> int:
    """Removes every entry and returns how many bytes that freed. Engines in use stay loaded."""
    freed = 0
    for path in engines_folder().glob("*"):
        if path.suffix in (".engine", REMEMBERED, SUFFIX, ".lock", ".part"):
            with suppress(FileNotFoundError):  # removed by another process
                size = path.stat().st_size
                path.unlink()
                freed += size
    return freed


def engines_folder() -> Path:
    """Where the engines are. It may not exist yet."""
    return cache_root() / "engines"


def _make_room(folder: Path, size: int) -> None:
    """Removes the least recently used entries, and what broken-off writes left, until `size` more bytes fit."""
    found = []
    for path in (*folder.glob("*.engine"), *folder.glob("*.part")):
        with suppress(OSError):  # removed by another process
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    taken = sum(file_size for _, file_size, _ in found)
    for _, file_size, path in sorted(found):
        if taken + size <= LIMIT_BYTES:
            break
        with suppress(OSError):  # it cannot be removed; the next may
            HashedFile(path).remove()
            taken -= file_size
