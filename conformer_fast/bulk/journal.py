"""The rows of a run that has not ended, in a file, so that it can go on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import DatasetError
from ..evaluation.resume import differences
from ..storage.lines import append, begins_with, going_on, line_of, open_to_append, value_of
from ..storage.regular import open_regular
from .rows import Row, row_from

WHAT = "conformer-fast batch"
MOST_BYTES = 1 << 26  # of a line; 21,000 classes of a picture with long names take 4 MB


class Journal:
    """Rows of pictures in their order, in a file that has only grown when a program was killed.

    Its lines, see storage.lines, are first the fields of the run, then row by row. What is behind the first damaged
    line, or behind the last whole group, is written anew: pictures that run together must do so again, or their scores
    may differ in the last bit.

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
        self._first = line_of({WHAT: dict(fields)})
        end = self._known() if os.path.lexists(file) else 0
        with going_on(file):
            self._opened = open_to_append(file)
            self._opened.truncate(end)
            if not end:
                self._write(self._first)

    def add(self, rows: Iterable[Row]) -> None:
        """Writes the next rows. Raises OSError, after which the file goes on as after a kill."""
        with going_on(self._file):
            self._write(b"".join(map(line_of, rows)))

    def rows(self) -> Iterator[Row]:
        """All that were written, one after another."""
        with open_regular(self._file) as read:
            read.readline()
            for line in read:
                yield row_from(value_of(line))

    def close(self) -> None:
        self._opened.close()

    def remove(self) -> None:
        self.close()
        self._file.unlink()

    def _write(self, content: bytes) -> None:
        append(self._opened, content)

    def _known(self) -> int:
        """Counts the rows that stay. Returns the bytes up to their end; 0 for a first line that is not whole."""
        try:
            with open_regular(self._file) as read:
                if not begins_with(read, self._first, MOST_BYTES, self._refuse):
                    return 0
                return self._end_of_rows(read)
        except OSError as error:
            raise DatasetError(f"{self._file} cannot be read ({error.strerror}); give another output") from error

    def _end_of_rows(self, read: BinaryIO) -> int:
        end = read.tell()
        for number, name in enumerate(self._names, start=1):
            try:
                row = row_from(value_of(read.readline(MOST_BYTES)))
            except ValueError:
                break
            if row.picture != name:
                break
            if number % self._group == 0 or number == len(self._names):
                self.count, end = number, read.tell()
        return end

    def _refuse(self, first: bytes) -> NoReturn:
        instead = "give another output, or delete this file"
        try:
            fields = dict(value_of(first)[WHAT])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._file} holds no rows of a batch; {instead}") from error
        now = value_of(self._first)[WHAT]
        raise DatasetError(f"{self._file} is of another run: {differences(fields, now)}; {instead}")
