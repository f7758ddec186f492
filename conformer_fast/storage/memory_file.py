"""Bytes that have a path, for who reads from paths only."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")  # of this process, as paths, on Linux


class MemoryFile:
    """A file that goes with this object, and that no other user can change. In memory on Linux, elsewhere on disk.

    Who has it open or mapped when the object goes, keeps it.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        if hasattr(os, "memfd_create") and DESCRIPTORS.is_dir():
            descriptor = os.memfd_create("conformer_fast")
            self.path = str(DESCRIPTORS / str(descriptor))
            weakref.finalize(self, os.close, descriptor).atexit = False
        else:
            descriptor, self.path = tempfile.mkstemp(prefix="conformer_fast")
            weakref.finalize(self, _remove, self.path, descriptor, os.getpid())
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


def _remove(path: str, descriptor: int, process: int) -> None:
    os.close(descriptor)
    if os.getpid() == process:  # a forked one leaves it to this one
        os.unlink(path)
