"""Files that are whole at any time."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_file(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Writes `content` beside `file` and renames it into place, so that nobody ever reads a part of it.

    mode: who may read it, less what the process's umask takes away; the user alone by default

    What a broken-off program leaves ends in ".part". Raises OSError, with `file` as it was, if it cannot be written.
    """
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
