"""Files that are whole at any time."""

from __future__ import annotations

import glob
import os
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path

LEFT_SECONDS = 3600.0  # a part that nobody has written to for so long is a broken-off program's


def replace_file(file: Path, content: bytes, mode: int = 0o600, *, like: os.stat_result | None = None) -> None:
    """Writes `content` beside `file` and renames it into place, so that nobody ever reads a part of it.

    mode: who may read it, less what the process's umask takes away; the user alone by default
    like: a file whose mode it has instead and, where that may be, whose owner

    What a broken-off program leaves ends in ".part"; a call for the same file, LEFT_SECONDS later, removes it. Raises
    OSError, which names `file`, if it cannot be written; it is then as it was.
    """
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if like else mode), "wb") as opened:
            if like:
                if hasattr(os, "fchown"):  # Windows has no owners to give
                    with suppress(PermissionError):
                        os.fchown(opened.fileno(), like.st_uid, like.st_gid)
                os.chmod(opened.fileno() if os.chmod in os.supports_fd else part, stat.S_IMODE(like.st_mode))
            opened.write(content)
        os.replace(part, file)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error  # names not the one beside it
    finally:
        with suppress(OSError):
            part.unlink()
    _remove_left(file)


def _remove_left(file: Path) -> None:
    with suppress(OSError):  # what cannot be seen or removed stays
        for part in file.parent.glob(f"{glob.escape(file.name)}.{'[0-9a-f]' * 32}.part"):
            if time.time() - part.lstat().st_mtime > LEFT_SECONDS:
                part.unlink()
