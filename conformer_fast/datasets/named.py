"""What a user names as pictures, by one rule for every command: files, folders, patterns of files, "-" for a picture on
the standard input, and http and https addresses."""

from __future__ import annotations

import glob
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, DatasetError, shown
from .addresses import MOST_BYTES, is_address
from .folders import pictures_below
from .labels import Picture

STANDARD_INPUT = "-"  # a file of that name is "./-"
NUMBERS = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]*)://")
MOST_NAMES = 100_000  # of a pattern


def named_pictures(sources: Sequence[str]) -> list[Picture]:
    """In their order; those of a folder and of a pattern by their names. Each is called as it is named, and by its path
    from a folder that is named. A file that is not there is found when it is read.

    Raises DatasetError for a folder or a pattern without pictures; ArgumentError for a second "-", for an address that
    is of neither http nor https, and for a pattern as `expanded` does.
    """
    if list(sources).count(STANDARD_INPUT) > 1:
        raise ArgumentError(f"{STANDARD_INPUT} is named twice, and the standard input has one picture; leave one out")
    return [picture for source in sources for picture in _named(source)]


def is_on_disk(name: str) -> bool:
    """Whether a file or folder is meant."""
    return name != STANDARD_INPUT and not is_address(name)


def is_pattern(name: str) -> bool:
    """Whether it may stand for several files."""
    return is_on_disk(name) and bool(glob.has_magic(name) or NUMBERS.search(name))


def may_be_there(name: str) -> bool:
    """Whether a file or folder is there that it stands for; of what is not on disk that is found later. Raises what
    `named_pictures` does for a name alone."""
    if not is_on_disk(name) or os.path.exists(name):
        return True
    _check_scheme(name)
    return is_pattern(name) and any(True for one in expanded(name) for _ in glob.iglob(one, recursive=True))


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for: * and ? for letters, ** for folders, [ab] and {08..10}, in order. Raises
    what `expanded` does."""
    return [name for one in expanded(pattern) for name in files_like(one)]


def files_like(pattern: str) -> list[str]:
    """The same of one in which no numbers are left to expand."""
    names = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
    return [name for name in names if not os.path.isdir(name)]


def expanded(pattern: str) -> list[str]:
    """ "a-{08..10}.tar" -> ["a-08.tar", "a-09.tar", "a-10.tar"]; numbers keep the first one's width.

    Raises ArgumentError, before any name is made, for numbers that count down and for over MOST_NAMES names.
    """
    text, *parts = NUMBERS.split(pattern)
    ranges = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    for first, last, _ in ranges:
        if int(first) > int(last):
            raise ArgumentError(f"{shown(pattern)} counts down; write {{{last}..{first}}}")
    count = math.prod(int(last) - int(first) + 1 for first, last, _ in ranges)
    if count > MOST_NAMES:
        raise ArgumentError(
            f"{shown(pattern)} stands for {count:,} names, {MOST_NAMES:,} are allowed; write * for the numbers, or "
            f"name a folder"
        )
    names = [text]
    for first, last, after in ranges:
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        names = [name + number + after for name in names for number in numbers]
    return names


def piped_picture() -> bytes:
    """What the standard input has. Raises ArgumentError when that is nothing, more than a picture, or a terminal."""
    example = "such as: conformer-fast predict - < cat.jpg"
    if sys.stdin is None or sys.stdin.closed:
        raise ArgumentError(f"the standard input, {STANDARD_INPUT}, is closed; send a picture there, {example}")
    if sys.stdin.isatty():
        raise ArgumentError(f"the standard input, {STANDARD_INPUT}, is a terminal; send a picture there, {example}")
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if not content:
        raise ArgumentError(f"the standard input, {STANDARD_INPUT}, is empty; send a picture there, {example}")
    if len(content) > MOST_BYTES:
        raise ArgumentError(
            f"the standard input has over {MOST_BYTES:,} bytes, the most that is allowed; name a file instead"
        )
    return content


def _named(source: str) -> list[Picture]:
    if not is_on_disk(source):
        return [Picture(source, source, 0, 0)]
    if os.path.isdir(source):
        below = pictures_below(Path(source))
        if not below:
            raise DatasetError(f"there are no pictures below {source}; name where the pictures are")
        return [Picture(one.file, one.file, 0, one.size) for one in below]
    if not os.path.lexists(source):
        _check_scheme(source)
    files = [source] if os.path.lexists(source) or not is_pattern(source) else matching(source)
    if not files:
        raise DatasetError(f"no file is called like {source}; name where the pictures are")
    return [Picture(file, file, 0, _size(file)) for file in files]


def _check_scheme(name: str) -> None:
    """Raises ArgumentError for an address of another kind, such as ftp."""
    if scheme := SCHEME.match(name):
        raise ArgumentError(
            f"{shown(name)}: only http and https addresses are fetched, not {shown(scheme[1])}; download the picture "
            f"yourself and name the file"
        )


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):  # found when it is read
        return 0
