"""Labeled pictures inside tar and parquet files, listed without unpacking anything.

tar:     samples of WebDataset (KEY.jpg beside KEY.cls or KEY.json), or pictures in class folders, or pictures alone.
         Only headers and labels are read; a picture's bytes are later read from their place in the file. Names of
         members are only names: nothing is written, and links are left out.
parquet: as Hugging Face writes it, with the columns `image` (bytes and path) and `label`; few rows are read at a time.

It is our own, over tarfile and pyarrow, because webdataset streams a tar file and Hugging Face's datasets copies what
it reads; here any picture is read by its number, in a fixed order, so that an interrupted evaluation can go on.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import DatasetError
from .labels import Picture, classes_of_folders, is_picture, label_of

LABELS = (".cls", ".json")
LABEL_BYTES = 1 << 20  # a longer label file is none
ROWS = 16  # of a parquet file that are in memory at a time


class Listed(NamedTuple):
    """pictures: in the order of the files. labels: one class each, None where the file tells none."""

    pictures: list[Picture]
    labels: list[int] | None


def list_tar(files: Sequence[Path], num_classes: int | None, own_labels: bool = True) -> Listed:
    """The pictures in tar files and, if their own labels count, their classes.

    Raises DatasetError when a file is compressed, damaged or no tar file, or when only some pictures have a label.
    """
    pictures: list[Picture] = []
    texts: dict[str, str] = {}  # picture -> its label
    folders: dict[str, str] = {}  # picture -> its class folder
    others: set[PurePosixPath] = set()
    for file in files:
        prefix = f"{file.name}/" if len(files) > 1 else ""
        labels: dict[str, str] = {}  # WebDataset's key -> label
        here: list[tuple[str, Picture]] = []
        for member, path, text in _members(file):
            if text is not None:
                labels[_key(path)] = text
            elif member.isdir():
                others.add(path)
            else:
                here.append((_key(path), Picture(f"{prefix}{path}", str(file), member.offset_data, member.size)))
                if path.parent.name:
                    folders[here[-1][1].name] = path.parent.name
                    others.add(path.parent)
        pictures += [picture for _, picture in here]
        if len({picture.name for picture in pictures}) < len(pictures):
            raise DatasetError(f"{file} has a picture twice, or one of a tar file of the same name; rename one")
        texts |= {picture.name: labels[key] for key, picture in here if key in labels}
    if not own_labels:
        return Listed(pictures, None)
    if texts:
        bare = [picture.name for picture in pictures if picture.name not in texts]
        if bare:
            raise DatasetError(f"{len(bare)} of {len(pictures)} pictures have no .cls or .json label, first {bare[0]}")
        return Listed(pictures, [label_of(texts[it.name], num_classes, f"the label of {it.name}") for it in pictures])
    if len(folders) < len(pictures) or not pictures:
        return Listed(pictures, None)
    parents = {path.parent for path in others if path.name in folders.values()}
    names = {path.name for path in others if path.parent in parents}
    classes = classes_of_folders(names, num_classes, ", ".join(map(str, files)))
    return Listed(pictures, [classes[folders[picture.name]] for picture in pictures])


def list_parquet(files: Sequence[Path], num_classes: int | None) -> Listed:
    """The rows of parquet files and their classes.

    Raises DatasetError when pyarrow is missing, a file is damaged, lacks the columns, or a row has no class.
    """
    pictures, labels = [], []
    for file in files:
        table = _parquet(file)
        kinds = {field.name: str(field.type) for field in table.schema_arrow}
        if not {"image", "label"} <= kinds.keys() or not kinds["label"].startswith(("int", "uint")):
            raise DatasetError(
                f"{file}: needs the columns 'image' and a whole number 'label', has "
                f"{', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
            )
        size = file.stat().st_size
        row = 0
        for batch in table.iter_batches(columns=["label"]):
            for label in batch.column("label").to_pylist():
                name = f"{file.name}:{row}"
                labels.append(label_of("-1" if label is None else str(label), num_classes, name))
                pictures.append(Picture(name, str(file), row, size))
                row += 1
    return Listed(pictures, labels)


class ParquetRows:
    """Reads pictures by row. Fast for rows that ascend; it keeps ROWS of them, and one file open."""

    def __init__(self) -> None:
        self._file = ""
        self._table: Any = None
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
        except (ArrowException, OSError, StopIteration) as error:
            self._file = ""
            raise DatasetError(f"{picture.name}: damaged ({error}); get the parquet file again") from error
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise DatasetError(f"{picture.name}: the column 'image' holds no bytes; write the pictures into the file")
        return content

    def _image(self, picture: Picture) -> Any:
        if picture.file != self._file:
            self._open(picture.file)
        row = picture.start
        group = next(number for number, rows in enumerate(self._groups) if row in rows)
        if group != self._group or row < self._rows.start:
            self._group, self._left = group, self._batches(group)
            self._rows = range(0)
        while row not in self._rows:
            self._rows, self._images = next(self._left)
        return self._images[row - self._rows.start].as_py()

    def _open(self, file: str) -> None:
        self._table, self._groups, start = _parquet(Path(file)), [], 0
        for group in range(self._table.num_row_groups):
            stop = start + self._table.metadata.row_group(group).num_rows
            self._groups.append(range(start, stop))
            start = stop
        self._file, self._group, self._rows = file, -1, range(0)

    def _batches(self, group: int) -> Iterator[tuple[range, Any]]:
        start = self._groups[group].start
        for batch in self._table.iter_batches(batch_size=ROWS, row_groups=[group], columns=["image"]):
            yield range(start, start + len(batch)), batch.column("image")
            start += len(batch)


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath, str | None]]:
    """Folders, pictures and labels; for a label its text."""
    size = os.path.getsize(file)
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    yield member, path, None
                elif not member.isreg() or member.issparse() or path.name.startswith("."):
                    continue
                elif path.suffix.lower() in LABELS and member.size <= LABEL_BYTES:
                    opened = archive.extractfile(member)
                    assert opened is not None
                    text = _label(path, opened.read(), str(file))
                    if text is not None:
                        yield member, path, text
                elif is_picture(member.name):
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member, path, None
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(
            f"{file}: not a whole, uncompressed tar file ({error}); get it again, or unpack .tar.gz to .tar, "
            f"whose pictures can be read in any order"
        ) from error


def _label(path: PurePosixPath, content: bytes, file: str) -> str | None:
    """The label in a sample's .cls or .json; None for a .json without one."""
    try:
        text = content.decode().strip()
        if path.suffix.lower() == ".cls":
            return text
        label = json.loads(text).get("label")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{file}: {path} is no label ({error}); a .cls is a number, a .json has 'label'") from error
    return None if label is None else str(label)


def _key(path: PurePosixPath) -> str:
    """WebDataset's: the path up to the first dot of its last part."""
    return str(path.with_name(path.name.partition(".")[0]))


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DatasetError('parquet files need pyarrow: pip install "conformer-fast[datasets]"') from error
    try:
        return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{file}: not a whole parquet file ({error}); get it again") from error
