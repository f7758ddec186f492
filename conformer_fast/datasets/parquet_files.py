"""Labeled pictures inside parquet files as Hugging Face writes them: columns `image` (bytes and path) and `label`.

It is our own, over pyarrow, because Hugging Face's datasets copies what it reads; here any picture is read by its row,
few rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError, first_few, shown
from ..storage.regular import open_regular
from .classes import Names, check_not_renumbered, classes_of, label_of
from .labels import Listed, Picture

INSTEAD = (
    "write what the model calls its classes into the file's schema (Hugging Face's ClassLabel), or the right numbers "
    "and no names"
)
ROWS = 16  # that are in memory at a time, at most
ROWS_BYTES = 1 << 26  # that they may take, if each were as large as its whole group
BOMB_BYTES, BOMB_RATIO = 1 << 25, 100  # pictures are compressed: no group of so many bytes shrinks so far


def list_parquet(files: Sequence[Path], num_classes: int | None, class_names: Names | None, own_labels: bool) -> Listed:
    """The rows of parquet files and, if their own labels count, their classes.

    Raises DatasetError when pyarrow is missing, a file is damaged, lacks the columns, or a row has no class.
    """
    pictures: list[Picture] = []
    labels: list[int] = []
    where = first_few(map(str, files))
    bare = False
    called: dict[str, int] = {}
    for file in files:
        table = _parquet(file)
        kinds = {field.name: str(field.type) for field in table.schema_arrow}
        if len(kinds) < len(table.schema_arrow):
            raise DatasetError(f"{file}: has two columns of one name; rename one")
        numbered = kinds.get("label", "").startswith(("int", "uint"))
        if "image" not in kinds or (own_labels and not numbered):
            needed = "the columns 'image' and a whole number 'label'" if own_labels else "the column 'image'"
            has = first_few(f"{name} ({kind})" for name, kind in kinds.items())
            raise DatasetError(f"{file}: needs {needed}, has {has}")
        size = file.stat().st_size
        if not own_labels:
            pictures += [_picture(file, row, size) for row in range(table.metadata.num_rows)]
            continue
        names = _label_names(table.schema_arrow.metadata, file)
        bare = bare or not names
        meant = classes_of(names, num_classes, str(file), class_names, INSTEAD) if names else {}
        called |= meant
        classes = list(meant.values())
        for row, number in enumerate(_numbers(table, file)):
            pictures.append(_picture(file, row, size))
            name = pictures[-1].name
            if names and number is not None and number >= len(names):
                raise DatasetError(
                    f"{name}: the label {number} is none of 0 ... {len(names) - 1}, which have names in the file's "
                    f"schema; write a name for each, or the right number"
                )
            label = label_of("-1" if number is None else str(number), None if names else num_classes, name)
            labels.append(classes[label] if names else label)
    if bare:
        check_not_renumbered(labels, num_classes, where, class_names, INSTEAD)
    return Listed(pictures, labels if own_labels else None, called or None)


class ParquetRows:
    """Reads pictures by row. Fast for rows that ascend; it keeps a few of them, and one file open."""

    def __init__(self) -> None:
        self._file = ""
        self._table: Any = None
        self._size = 0
        self._groups: list[range] = []
        self._group = -1
        self._left: Iterator[tuple[range, Any]] = iter(())
        self._rows = range(0)
        self._images: Any = None

    def read(self, picture: Picture) -> bytes:
        """Raises DatasetError when the row is damaged or holds no picture's bytes."""
        from pyarrow import ArrowException

        try:
            image = self._image(picture)
        except (ArrowException, OSError, ValueError, ArithmeticError, StopIteration) as error:
            self._file = ""
            raise DatasetError(f"{picture.name}: damaged ({shown(error)}); get the parquet file again") from error
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise DatasetError(f"{picture.name}: the column 'image' holds no bytes; write the pictures into the file")
        return content

    def _image(self, picture: Picture) -> Any:
        if picture.file != self._file:
            self._open(picture.file, picture.size)
        row = picture.start
        group = next(number for number, rows in enumerate(self._groups) if row in rows)
        if group != self._group or row < self._rows.start:
            self._group, self._left = group, self._batches(group)
            self._rows = range(0)
        while row not in self._rows:
            self._rows, self._images = next(self._left)
        return self._images[row - self._rows.start].as_py()

    def _open(self, file: str, size: int) -> None:
        self._table, self._size, self._groups, start = _parquet(Path(file)), size, [], 0
        for group in range(self._table.num_row_groups):
            stop = start + self._table.metadata.row_group(group).num_rows
            self._groups.append(range(start, stop))
            start = stop
        self._file, self._group, self._rows = file, -1, range(0)

    def _batches(self, group: int) -> Iterator[tuple[range, Any]]:
        """Raises OSError for a group that unpacks to far more than its share of the file."""
        rows, metadata = self._groups[group], self._table.metadata
        size = metadata.row_group(group).total_byte_size  # not of a column: pyarrow aborts at a damaged one
        packed = self._size * len(rows) / max(1, metadata.num_rows)
        if size > BOMB_BYTES and size > BOMB_RATIO * packed:
            raise OSError(f"its {len(rows)} rows would unpack to {size} bytes, which are no pictures")
        at_once, start = min(ROWS, max(1, ROWS_BYTES // max(1, size))), rows.start
        for batch in self._table.iter_batches(batch_size=at_once, row_groups=[group], columns=["image"]):
            yield range(start, start + len(batch)), batch.column("image")
            start += len(batch)


def _picture(file: Path, row: int, size: int) -> Picture:
    """size: of the file, in bytes"""
    if row >= size:
        raise DatasetError(f"{file}: has more rows than bytes, so they hold no pictures; get it again")
    return Picture(f"{file.name}:{row}", str(file), row, size)


def _numbers(table: Any, file: Path) -> Iterator[int | None]:
    """The column of labels."""
    from pyarrow import ArrowException

    try:
        for batch in table.iter_batches(columns=["label"]):
            yield from batch.column("label").to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{file}: damaged ({shown(error)}); get it again") from error


def _label_names(metadata: dict[bytes, bytes] | None, file: Path) -> list[str]:
    """What Hugging Face's schema calls the labels, in the order of their numbers; nothing if it does not tell."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError):
        return []
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: its schema is damaged ({shown(error)}); get it again") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{file}: the names of its labels are damaged; get it again")
    if len(set(names)) < len(names):
        raise DatasetError(f"{file}: two of its labels have one name; write it with a name for each")
    return names


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DatasetError('parquet files need pyarrow: pip install "conformer-fast[datasets]"') from error
    try:
        open_regular(file).close()
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{file}: not a whole parquet file ({shown(error)}); get it again") from error
