"""Tables for people, in columns of text or as markdown. None of our own dependencies prints any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """form: the format specification of its values, which then stand on the right; "" is text, on the left, and ">" is
    text on the right. width: at least so many characters; a table that is printed line by line knows no other."""

    heading: str = ""
    form: str = ""
    width: int = 0

    def cell(self, value: object) -> str:
        return "-" if value is None else value if isinstance(value, str) else format(value, self.form)


class Table:
    """Writes rows: a value for each column. A string is written as it is, and None as "-"."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._headings = [column.heading for column in columns]
        self._least = [max(column.width, len(column.heading)) for column in columns]

    @property
    def head(self) -> str:
        """The headings, for above what `line` writes."""
        return self._line(self._headings, self._least)

    def line(self, *values: object) -> str:
        """One row, in the columns' widths."""
        return self._line(self._cells(values), self._least)

    def lines(self, rows: Iterable[Sequence[object]]) -> list[str]:
        """The headings, if there are any, and all rows, in columns as wide as they need."""
        cells = [self._headings] * any(self._headings) + [self._cells(row) for row in rows]
        widths = [max(least, *(len(row[i]) for row in cells), 0) for i, least in enumerate(self._least)]
        return [self._line(row, widths) for row in cells]

    def markdown(self, rows: Iterable[Sequence[object]]) -> str:
        """The whole table for a document."""
        cells = [self._headings, *map(self._cells, rows)]
        head, *lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in cells]
        return "\n".join([head, "|---" * len(self._columns) + "|", *lines])

    def _cells(self, values: Sequence[object]) -> list[str]:
        return [column.cell(value) for column, value in zip(self._columns, values, strict=True)]

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        columns = zip(self._columns, cells, widths, strict=True)
        return "  ".join(
            cell.rjust(width) if column.form else cell.ljust(width) for column, cell, width in columns
        ).rstrip()
