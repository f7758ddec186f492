"""Built engines kept on disk: raw bytes beside a JSON manifest that says what they were built from and their sha256.

A key is the digest of the fields that decide what an engine computes and which runtime may load it. Entries are written
whole under a lock; one whose bytes no longer match its manifest is rebuilt with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from conformer_fast.storage.atomic import replace_file
from conformer_fast.storage.paths import cache_root

LIMIT_BYTES = 4 << 30  # of all entries together; the least recently used go first


@dataclass(frozen=True)
class CacheEntry:
    """One built engine on disk. size is in bytes, used is the last use in seconds since the epoch."""

    key: str
    fields: Mapping[str, Any]
    size: int
    used: float


def cached(fields: Mapping[str, Any], build: Callable[[], bytes]) -> bytes:
    """The engine built from `fields` (JSON values): from disk, else from build(), which is then kept.

    A folder that cannot be written, or a full disk, is a warning and costs only the caching.
    """
    key = key_of(fields)
    folder = engines_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    except OSError as error:
        warnings.warn(f"engines are not kept: {folder} cannot be used ({error})", stacklevel=2)
        return build()
    try:
        engine = _read(folder, key)
        if engine is None:
            engine = build()
            try:
                _write(folder, key, fields, engine)
            except OSError as error:
                warnings.warn(f"the engine was not kept in {folder} ({error})", stacklevel=2)
        return engine
    finally:
        lock.release()


def key_of(fields: Mapping[str, Any]) -> str:
    """32 hex digits that name an entry."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def entries() -> list[CacheEntry]:
    """What is on disk, most recently used first. Damaged entries are left out."""
    found = []
    for manifest_path in engines_folder().glob("*.json"):
        try:
            manifest = json.loads(manifest_path.read_text())
            stat = manifest_path.with_suffix(".engine").stat()
            found.append(CacheEntry(manifest_path.stem, manifest["fields"], stat.st_size, stat.st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Removes every entry and returns how many bytes that freed. Engines in use stay loaded."""
    freed = 0
    for path in engines_folder().glob("*"):
        if path.suffix in (".engine", ".json", ".lock", ".part"):
            with suppress(FileNotFoundError):  # removed by another process
                size = path.stat().st_size
                path.unlink()
                freed += size
    return freed


def engines_folder() -> Path:
    return cache_root() / "engines"


def _read(folder: Path, key: str) -> bytes | None:
    """The entry's bytes, or None if there is none or it is damaged."""
    manifest_path, engine_path = folder / f"{key}.json", folder / f"{key}.engine"
    if not manifest_path.exists():
        return None
    try:
        expected = json.loads(manifest_path.read_text())["sha256"]
        engine = engine_path.read_bytes()
        intact = hashlib.sha256(engine).hexdigest() == expected
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        warnings.warn(f"the cached engine {engine_path} is damaged; building it again", stacklevel=3)
        return None
    with suppress(OSError):  # another process may just have removed it to make room
        os.utime(engine_path)
    return engine


def _write(folder: Path, key: str, fields: Mapping[str, Any], engine: bytes) -> None:
    """Engine first and manifest last, each renamed into place, so that an entry is whole or absent."""
    _make_room(folder, len(engine))
    manifest = {"fields": dict(fields), "sha256": hashlib.sha256(engine).hexdigest()}
    for suffix, content in ((".engine", engine), (".json", json.dumps(manifest, indent=1).encode())):
        replace_file(folder / (key + suffix), content)


def _make_room(folder: Path, size: int) -> None:
    """Removes the least recently used entries, and what broken-off writes left, until `size` more bytes fit."""
    found = []
    for path in (*folder.glob("*.engine"), *folder.glob("*.part")):
        with suppress(FileNotFoundError):  # removed by another process
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    taken = sum(file_size for _, file_size, _ in found)
    for _, file_size, path in sorted(found):
        if taken + size <= LIMIT_BYTES:
            break
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        taken -= file_size
