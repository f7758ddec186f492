"""Files of JSON values, a line each, that only grow: what a program has written before it was killed can be told.

A line is the CRC-32 of a JSON text, and the text.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn


def line_of(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def value_of(line: bytes) -> Any:
    """Raises ValueError for a damaged line."""
    check, _, text = line.partition(b" ")
    text = text.removesuffix(b"\n")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        raise ValueError("damaged")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error


def begins_with(read: BinaryIO, first: bytes, most: int, refuse: Callable[[bytes], NoReturn]) -> bool:
    """Whether a file's first line, which is read, is `first`; not if the program was killed while it wrote that. Calls
    `refuse` with another line. most: bytes that are read
    """
    found = read.readline(most)
    if found != first and not first.startswith(found):
        refuse(found)
    return found == first


def open_to_append(file: Path) -> BinaryIO:
    """Without a buffer, so a write may take a part only; see `append`. Makes the file; a link is not followed."""
    return open(file, "ab", buffering=0, opener=_no_link)


def append(opened: BinaryIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[opened.write(left) :]


@contextmanager
def going_on(file: Path) -> Iterator[None]:
    """An OSError inside says that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; what is done is kept, the same call goes on", str(file)
        ) from error


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
