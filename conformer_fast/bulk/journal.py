"""The rows of a run that has not ended, in a file, so that it can go on."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DatasetError
from ..evaluation.resume import differences
from ..storage.regular import open_regular
from .rows import Row, row_from

WHAT = "conformer-fast batch"
MOST_BYTES = 1 << 26  # of a line; 21,000 classes of a picture with long names take 4 MB


class Journal:
    """Rows of pictures in their order, in a file that has only grown when a program was killed.

    A line is the CRC-32 of a JSON value, and the value: first the fields of the run, then row by row. What is behind
    the first damaged line, or behind the last whole group, is written anew: pictures that run together must do so
    again, or their scores may differ in the last bit.

    count: rows that are there
    """

    def __init__(self, file: Path, fields: Mapping[str, Any], names: Sequence[str], group: int) -> None:
        """Goes on with the file if it is there.

        fields: what runs, as JSON values
        names:  of all pictures
        group:  pictures that run together

        Raises DatasetError for a file of another run, or of something else.
        """
        self._file, self._names, self._group, self.count = file, names, group, 0
        self._first = _line({WHAT: dict(fields)})
        end = self._known() if os.path.lexists(file) else 0
        with going_on(file):
            self._opened = open(file, "ab", buffering=0, opener=_no_link)  # noqa: SIM115 - until close()
            self._opened.truncate(end)
            if not end:
                self._write(self._first)

    def add(self, rows: Iterable[Row]) -> None:
        """Writes the next rows. Raises OSError, after which the file goes on as after a kill."""
        with going_on(self._file):
            self._write(b"".join(map(_line, rows)))

    def rows(self) -> Iterator[Row]:
        """All that were written, one after another."""
        with open_regular(self._file) as read:
            read.readline()
            for line in read:
                yield row_from(_value(line))

    def close(self) -> None:
        self._opened.close()

    def remove(self) -> None:
        self.close()
        self._file.unlink()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._opened.write(left) :]

    def _known(self) -> int:
        """Counts the rows that stay. Returns the bytes up to their end; 0 for a first line that is not whole."""
        try:
            with open_regular(self._file) as read:
                first = read.readline(MOST_BYTES)
                if first != self._first:
                    if self._first.startswith(first):  # it was killed while it wrote that
                        return 0
                    self._refuse(first)
                return self._end_of_rows(read)
        except OSError as error:
            raise DatasetError(f"{self._file} cannot be read ({error.strerror}); give another output") from error

    def _end_of_rows(self, read: BinaryIO) -> int:
        end = read.tell()
        for number, name in enumerate(self._names, start=1):
            try:
                row = row_from(_value(read.readline(MOST_BYTES)))
            except ValueError:
                break
            if row.picture != name:
                break
            if number % self._group == 0 or number == len(self._names):
                self.count, end = number, read.tell()
        return end

    def _refuse(self, first: bytes) -> None:
        instead = "give another output, or delete this file"
        try:
            fields = dict(_value(first)[WHAT])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._file} holds no rows of a batch; {instead}") from error
        now = _value(self._first)[WHAT]
        raise DatasetError(f"{self._file} is of another run: {differences(fields, now)}; {instead}")


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def going_on(file: Path) -> Iterator[None]:
    """An OSError inside says that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; what is done is kept, the same call goes on", str(file)
        ) from error


def _line(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> Any:
    """Raises ValueError for a damaged line."""
    check, _, text = line.partition(b" ")
    text = text.removesuffix(b"\n")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        raise ValueError("damaged")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
