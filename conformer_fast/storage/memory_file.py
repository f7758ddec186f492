"""Bytes that have a path, for who reads from paths only."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")  # of this process, as paths, on Linux


class MemoryFile:
    """A file that goes with this object, and that no other user can change. In memory on Linux, elsewhere on disk.

    Who has it open or mapped when the object goes, keeps it. A program that closes descriptors which are not its own,
    as those do that become daemons, loses it: see `intact`. Raises OSError where there is no room or no descriptor.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        if hasattr(os, "memfd_create") and DESCRIPTORS.is_dir():
            descriptor = os.memfd_create("conformer_fast")
            self.path = str(DESCRIPTORS / str(descriptor))
            self._identity = _identity(descriptor)
            weakref.finalize(self, _close, descriptor, self._identity).atexit = False
        else:
            descriptor, self.path = tempfile.mkstemp(prefix="conformer_fast")
            self._identity = _identity(descriptor)
            weakref.finalize(self, _remove, self.path, descriptor, self._identity, os.getpid())
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)

    @property
    def intact(self) -> bool:
        """Whether its path still leads to it."""
        return _identity(self.path) == self._identity

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


def _identity(file: int | str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _close(descriptor: int, identity: tuple[int, int] | None) -> None:
    """Unless its number is another file's by now."""
    if _identity(descriptor) == identity:
        os.close(descriptor)


def _remove(path: str, descriptor: int, identity: tuple[int, int] | None, process: int) -> None:
    _close(descriptor, identity)
    if os.getpid() == process and _identity(path) == identity:  # a forked one leaves it to this one
        os.unlink(path)
