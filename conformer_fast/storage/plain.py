"""Reading files that may be anything: a pipe without a writer, a device without an end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_plain(path: Path, limit: int | None = None) -> bytes:
    """The file's content. limit: bytes that it may have.

    Raises OSError at once, naming it, if it cannot be read, is longer, or is no plain file, nor a link to one.
    """
    waiting = getattr(os, "O_NONBLOCK", 0)  # opening a pipe waits for its writer
    with open(os.open(path, os.O_RDONLY | waiting | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", os.fspath(path))
        if limit is not None and status.st_size > limit:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, at most {limit:,} are read", os.fspath(path))
        return file.read()
