"""Reading of what must be a regular file."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a file to read its bytes.

    A FIFO or a device, which might let the reader wait for ever, a folder, and a name that no file can have raise
    OSError at once.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "a pipe or a device, no regular file", os.fspath(path))
    return open(path, "rb", opener=lambda *_: descriptor)  # which gives it its name


def read_regular(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The file's content. Raises OSError as `open_regular` does, and when it has more bytes than `limit`."""
    with open_regular(path) as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"has over {limit} bytes", os.fspath(path))
        return file.read()
