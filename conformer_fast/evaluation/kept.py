"""What models found in pictures, in a file that only grows, so that an evaluation of detectors can go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from ..errors import DatasetError
from ..storage.lines import append, begins_with, going_on, line_of, open_to_append, value_of
from ..storage.outputs import check_output
from ..storage.regular import open_regular
from .found import Found
from .resume import differences

WHAT = "conformer-fast detections"
MOST_BYTES = 1 << 28  # of a line; 10,000 detections with masks of large pictures take 50 MB


class Kept:
    """Its lines, see storage.lines, are first the fields of the evaluation, then a picture's number and what each model
    found in it. Damaged pictures have none, so they are tried again. What is behind the first damaged line is written
    anew. A context manager.

    found: picture -> what each model found
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None,
        fields: Mapping[str, Any],
        read: Callable[[Any], tuple[int, Sequence[Found]]],
    ) -> None:
        """Goes on with the file if it is there; without one, nothing is kept but in memory.

        fields: what is evaluated and how, as JSON values
        read:   makes of a line's JSON value a picture and what was found; raises ValueError for what is none

        Raises DatasetError for a file of another evaluation, or of something else; what `check_output` raises.
        """
        self.found: dict[int, Sequence[Found]] = {}
        self._opened: BinaryIO | None = None
        if file is None:
            return
        self._file, self._first, self._read = check_output(file), line_of({WHAT: dict(fields)}), read
        end = self._known() if os.path.lexists(self._file) else 0
        self._opened = open_to_append(self._file)
        self._opened.truncate(end)
        if not end:
            append(self._opened, self._first)

    def add(self, picture: int, found: Sequence[Found]) -> None:
        """Raises OSError, after which the file goes on as after a kill."""
        self.found[picture] = found
        if self._opened:
            with going_on(self._file):
                append(self._opened, line_of([picture, found]))

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        if self._opened:
            self._opened.close()

    def _known(self) -> int:
        """Reads what is there. Returns the bytes up to its end; 0 for a first line that is not whole."""
        try:
            with open_regular(self._file) as read:
                if not begins_with(read, self._first, MOST_BYTES, self._refuse):
                    return 0
                end = read.tell()
                while line := read.readline(MOST_BYTES):
                    try:
                        picture, found = self._read(value_of(line))
                    except ValueError:
                        break
                    self.found[picture], end = found, read.tell()
                return end
        except OSError as error:
            raise DatasetError(f"{self._file} cannot be read ({error.strerror}); name another file") from error

    def _refuse(self, first: bytes) -> NoReturn:
        instead = "name another file, or delete it"
        try:
            fields = dict(value_of(first)[WHAT])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._file} holds no evaluation of a detector; {instead}") from error
        others = differences(fields, value_of(self._first)[WHAT])
        raise DatasetError(f"{self._file} is of another evaluation: {others}; {instead}")
