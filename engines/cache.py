"""Built engines kept on disk, each beside its sha256 and the fields that it was built from.

A key is the digest of the fields that decide what an engine computes and which runtime may load it. An engine whose
bytes no longer match its sha256, or whose fields are not those asked for, is built again with a warning; the least
recently used make room for new ones. A folder that others may write is not used.

It is our own because cache libraries (diskcache, joblib) hand out pickles, or whatever they find, and an engine is
run by native code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from conformer_fast.storage.hashed import SUFFIX, HashedFile
from conformer_fast.storage.lock import held, remove_free
from conformer_fast.storage.paths import cache_root

LIMIT_BYTES = 4 << 30  # of all entries together; the least recently used go first
ENGINE, REMEMBERED = ".engine", ".text"  # what `cached` and `remembered` keep
TEXT_BYTES = 4096  # what a short text takes on a disk
LOCK, PART = ".lock", ".part"
ROOM_LOCK = "room.lock"
OURS = re.compile(  # nothing else is ever removed
    r"[0-9a-f]{32}\.(engine|text)((\.hash)?(\.[0-9a-f]{32}\.part)?|\.lock)|room\.lock"
)


@dataclass(frozen=True)
class CachedEngine:
    """One built engine on disk. size is in bytes, used is the last use in seconds since the epoch."""

    key: str
    fields: Mapping[str, Any]
    size: int
    used: float


class _Entry(HashedFile):
    """What is kept under the key of `fields`, and has these. Who writes makes room first, one process at a time."""

    def __init__(self, fields: Mapping[str, Any], suffix: str) -> None:
        super().__init__(engines_folder() / f"{key_of(fields)}{suffix}")
        self._fields = fields

    @property
    def usable(self) -> bool:
        """Whether the folder is in the user's hands alone. One that is not, is named in a warning, once."""
        reason = _distrusted(self.path.parent)
        if reason is not None:
            _warn_once(f"the engine cache {self.path.parent} is not used: {reason}")
        return reason is None

    def found(self, otherwise: str) -> bytes | None:
        content = self.read_or_warn(otherwise, self._fields)
        if content is not None:
            with suppress(OSError):  # it may just have been removed to make room, or may not be changed
                os.utime(self.path)
        return content

    def keep(self, what: str, content: bytes) -> None:
        self.write_or_warn(what, content, self._fields)

    def write(self, content: bytes, fields: Mapping[str, Any] | None = None) -> None:
        with self.locked(), held(FileLock(self.path.parent / ROOM_LOCK)):
            _make_room(_taken(self.path, len(content)))
            try:
                super().write(content, fields)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _free(2 * len(content))  # an earlier one may have been half written
                super().write(content, fields)


def cached(fields: Mapping[str, Any], build: Callable[[], bytes], refused: bytes | None = None) -> bytes:
    """The engine built from `fields` (JSON values): from disk, else from build(), which is then kept.

    refused: an engine that its runtime does not take: it is built again in its place

    Whoever asks for the same engine meanwhile waits and finds it built. A folder that cannot be written, or a full
    disk, is a warning and costs only the keeping. A folder that others may write is not used.
    """
    entry = _Entry(fields, ENGINE)
    if not entry.usable:
        return build()
    with entry.locked_if_writable():
        engine = entry.found("building it again")
        if engine is None or engine == refused:
            engine = build()
            entry.keep("engines", engine)
        return engine


def remembered(fields: Mapping[str, Any], compute: Callable[[], str], what: str = "hashes of graphs") -> str:
    """A short text that `fields` (JSON values) decide, such as a hash: from disk, else from compute(), then kept.

    what: such texts are, for a warning that they cannot be kept

    Whoever asks for the same meanwhile waits.
    """
    entry = _Entry(fields, REMEMBERED)
    if not entry.usable:
        return compute()
    with entry.locked_if_writable():
        text = entry.found("computing it again")
        if text is None:
            text = compute().encode()
            entry.keep(what, text)
        return text.decode()


def key_of(fields: Mapping[str, Any]) -> str:
    """32 hex digits that name an entry."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def cached_engines() -> list[CachedEngine]:
    """What is on disk, most recently used first. Damaged entries, and files that are not ours, are left out."""
    found = []
    for path in _ours():
        with suppress(OSError, RecursionError):  # removed by another process; fields that no JSON can be made of
            fields, status = HashedFile(path).fields(), path.stat()
            if path.suffix == ENGINE and fields is not None and key_of(fields) == path.stem:
                found.append(CachedEngine(path.stem, fields, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear_cache() -> int:
    """Removes every entry and returns how many bytes that freed. Engines in use stay loaded."""
    freed = 0
    with ExitStack() as alone:
        if _ours():  # else there may be no folder
            with suppress(OSError):  # what cannot be locked may be removed
                alone.enter_context(held(FileLock(engines_folder() / ROOM_LOCK)))  # nobody is writing
        for path in sorted(_ours(), key=lambda path: path.suffix != SUFFIX):  # hashes first: content alone is nothing
            if path.suffix == LOCK:
                remove_free(path)
            else:
                with suppress(OSError):  # removed by another process, or a folder
                    size = path.lstat().st_size
                    path.unlink()
                    freed += size
    return freed


def engines_folder() -> Path:
    """Where the engines are. It may not exist yet."""
    return cache_root() / "engines"


def _ours() -> list[Path]:
    """Every file there that a cache of ours writes, by its name."""
    return [path for path in engines_folder().glob("*") if OURS.fullmatch(path.name)]


def _distrusted(folder: Path) -> str | None:
    """Why engines in the folder may be anybody's, and what to do; None if only its owner, this user or root, can put
    them there. An engine is code: root does not run what a user has put somewhere."""
    if not hasattr(os, "geteuid"):
        return None  # Windows, where a user's folders are his own
    for place in (folder, folder.parent):  # who may write the one above may put another folder in its place
        try:
            status = place.stat()
        except OSError:
            continue  # it is not there yet
        if status.st_uid not in (os.geteuid(), 0):
            return f"{place} is user {status.st_uid}'s; set CONFORMER_FAST_CACHE to a folder of your own"
        sticky = place != folder and status.st_mode & stat.S_ISVTX  # as /tmp: others can replace nothing there
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"other users may write {place}; chmod go-w it after you have removed what is in it"
    return None


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def _make_room(size: int) -> None:
    """Removes the least recently used entries, and what broken-off writes left, until `size` more bytes fit."""
    _free(sum(taken for _, taken, _ in _files()) + size - LIMIT_BYTES)


def _free(size: int) -> None:
    """Removes the least recently used files until `size` bytes are free, or none is left."""
    for _, taken, path in sorted(_files()):
        if size <= 0:
            break
        with suppress(OSError):  # it cannot be removed; the next may
            HashedFile(path).remove()
            size -= taken


def _files() -> list[tuple[float, int, Path]]:
    """When each was used last, and how many bytes it takes; hashes and locks are not counted."""
    found = []
    for path in _ours():
        with suppress(OSError):  # removed by another process
            status = path.lstat()
            if path.suffix in (ENGINE, REMEMBERED, PART):
                found.append((status.st_mtime, _taken(path, status.st_size), path))
    return found


def _taken(path: Path, size: int) -> int:
    return max(size, TEXT_BYTES) if path.suffix == REMEMBERED else size
