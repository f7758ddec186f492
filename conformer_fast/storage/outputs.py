"""Files that users ask for: whole at any time, and never in the place of a device, or of what is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import ArgumentError, a_path
from .atomic import replace_file

AnyPath = str | os.PathLike[str]
STREAMS = range(3)  # standard input, output and error


def check_output(file: AnyPath, inputs: Iterable[AnyPath] = ()) -> Path:
    """The file that `write_output` writes, which is where links end. For before any work.

    inputs: files that are read, or other words, such as "pretrained", which are passed over

    Raises ArgumentError when it is one of the inputs, something that is no plain file, what the program itself reads
    from or prints to, or no file's name; FileNotFoundError, NotADirectoryError, IsADirectoryError or PermissionError
    where no file can be written.
    """
    file = a_path("the output", file)
    try:
        path, there = Path(os.path.realpath(file)), _status(file)
    except ValueError as error:
        raise ArgumentError(f"{str(file)!r} cannot be a file's name ({error}); give another") from error
    if there is not None:
        _check_replaceable(file, there, inputs)
    if path.parent.is_file():
        raise NotADirectoryError(f"{file}: {file.parent} is a file, not a folder; give another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{file}: the folder {file.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{file}: the folder {path.parent} cannot be written; give another")
    return path


def write_output(file: AnyPath, content: bytes) -> None:
    """Writes a file, whole or not at all. A link is followed. What is replaced hands on its mode and owner; who may
    read a new one the umask decides.

    Raises what `check_output` raises, and OSError, which names the file, when it cannot be written.
    """
    path = check_output(file)
    replace_file(path, content, 0o666, like=_status(path))


def _check_replaceable(file: Path, there: os.stat_result, inputs: Iterable[AnyPath]) -> None:
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(f"{file} is a folder; give the name of a file")
    if not stat.S_ISREG(there.st_mode):
        raise ArgumentError(f"{file} is a device, pipe or socket, not a plain file; give the name of a file")
    for stream in STREAMS:
        with suppress(OSError):  # closed
            if os.path.samestat(there, os.fstat(stream)):
                raise ArgumentError(f"{file} is what this program reads from or prints to; give another name")
    for other in inputs:
        found = None
        with suppress(ValueError, OSError):  # what cannot be looked at is not read either
            found = _status(other)
        if found is not None and os.path.samestat(there, found):
            raise ArgumentError(f"{file} is the file {other}, which is read and would be lost; give another name")
    if not os.access(file, os.W_OK):
        raise PermissionError(f"{file} may not be changed; give another name")


def _status(path: AnyPath) -> os.stat_result | None:
    """Of what is there, at the end of links; None if nothing is. Waits for no pipe."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
