"""One at a time, among the threads and processes of a machine."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .regular import read_regular

PATIENCE = 10.0  # seconds of waiting before the user is told


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """Holds it; a thread that has it may take it again. Its file says who holds it, and is there no longer than that.

    Whoever waits for over PATIENCE seconds is told, once, for whom. Raises OSError if the file cannot be made.
    """
    path, outermost = Path(lock.lock_file), not lock.is_locked
    _check_own(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        warnings.warn(f"waiting for {path}, which {_holder(path)} has held for over {PATIENCE:g} s", stacklevel=5)
        lock.acquire(timeout=-1)
    try:
        if outermost:
            with suppress(OSError):  # Windows lets nobody write it
                path.write_text(str(os.getpid()))
        yield
    finally:
        try:
            if outermost:
                with suppress(OSError):  # before the release: then it may be another's. Windows does it by itself
                    path.unlink()
        finally:
            lock.release()  # also if Ctrl-C comes now


def _check_own(path: Path) -> None:
    """Raises OSError for a file that has another name too: what the lock writes would be in that."""
    with suppress(FileNotFoundError):
        if path.lstat().st_nlink > 1 and not path.is_dir():
            raise OSError(errno.EMLINK, "is another file's name too; remove it", str(path))


def remove_free(path: Path) -> None:
    """Removes a lock's file, which a killed process left, unless somebody holds it."""
    lock = FileLock(path)
    with suppress(OSError):
        lock.acquire(timeout=0)
        path.unlink()
    lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {int(read_regular(path, 20))}"
    except (OSError, ValueError):
        return "another process"
