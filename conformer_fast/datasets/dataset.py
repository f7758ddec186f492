"""Pictures, with labels or without, in a folder, tar files or parquet files, read where they are, in a fixed order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import torch
from torch import Tensor

from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    DatasetError,
    ImageError,
    a_path,
    first_few,
    several,
    shown,
    whole,
)
from ..model.recipe import USUAL, Recipe
from ..storage.regular import open_regular
from .addresses import fetch, is_address
from .classes import Names, classes_of, own_names
from .folders import list_folder
from .labels import Listed, Picture, labels_from_file
from .named import STANDARD_INPUT, expanded, files_like, is_on_disk, is_pattern, matching, named_pictures, piped_picture
from .parquet_files import ParquetRows, list_parquet
from .tar_files import list_tar

if TYPE_CHECKING:
    from PIL import Image

SHARDS = (".tar", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}.*\.parquet")  # how Hugging Face calls its files


@dataclass(frozen=True)
class PictureSet:
    """Pictures in a fixed order. Any of them can be read, by any process that has a copy of this.

    source:   what was opened
    kind:     "folder", "tar", "parquet", or "named": pictures that were named one by one or come from several places
    pictures: where each one's bytes are
    piped:    the picture on the standard input, if there is one
    """

    source: str
    kind: str
    pictures: tuple[Picture, ...]
    piped: bytes = field(default=b"", repr=False, kw_only=True)
    _rows: ParquetRows = field(default_factory=ParquetRows, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def open(self, index: int) -> BinaryIO:
        """The file of picture `index`. Raises OSError, DatasetError, or ImageError for an address, when it cannot be
        had."""
        picture = self.pictures[whole("index", index, least=0)]
        if self.kind == "parquet":
            return BytesIO(self._rows.read(picture))
        if picture.file == STANDARD_INPUT:
            return BytesIO(self.piped)
        if is_address(picture.file):
            return BytesIO(fetch(picture.file))
        file = open_regular(picture.file)
        if self.kind != "tar":
            return file
        with file:
            file.seek(picture.start)
            return BytesIO(file.read(picture.size))

    def read(self, index: int) -> bytes:
        """The bytes of that file. Raises the same."""
        with self.open(index) as file:
            return file.read()

    def load(self, index: int) -> Image.Image:
        """Picture `index` in mode RGB. Raises ImageError, which names the picture, when it cannot be read or used."""
        from ..preprocessing.cpu import load_image  # needs Pillow, the package's import does not

        name = shown(self.pictures[whole("index", index, least=0)].name)
        try:
            file = self.open(index)
        except DatasetError as error:
            raise ImageError(str(error)) from error
        except OSError as error:
            raise ImageError(
                f"{name}: cannot be read ({error.strerror}); give the path of an image file, or get it again"
            ) from error
        with file:
            try:
                return load_image(file)
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error

    def input(self, index: int, size: int, dtype: torch.dtype = torch.float32, recipe: Recipe = USUAL) -> Tensor:
        """Picture `index` as the network's input, (3, size, size), as `conformer_fast.preprocess` makes it; in uint8,
        the pixels before normalization. Raises ImageError as `load` does."""
        from ..preprocessing.cpu import preprocess_batch

        image = self.load(index)
        try:
            return preprocess_batch([image], size, dtype=dtype, threads=1, recipe=recipe)[0]
        except ImageError as error:
            raise ImageError(f"{shown(self.pictures[index].name)}: {error}") from error

    def evenly(self, count: int) -> Self:
        """At most `count` of the pictures, evenly from all in their order, so that each class has its share. Raises
        ArgumentError unless it is a whole number, at least 0."""
        count = min(whole("count", count, least=0), len(self))
        return self._taken([index * len(self) // count for index in range(count)])

    def _taken(self, indices: Sequence[int]) -> Self:
        return replace(self, pictures=tuple(self.pictures[index] for index in indices))

    def sha256(self) -> str:
        """A digest of every picture's name, place and size: it tells whether these are the same pictures."""
        return self._digest("" for _ in self.pictures)

    def _digest(self, more: Iterable[str]) -> str:
        """more: what else there is to say of each picture"""
        digest = hashlib.sha256(self.kind.encode() + self.piped)
        for picture, rest in zip(self.pictures, more, strict=True):
            digest.update(os.fsencode(f"\0{picture.name}\0{picture.start}\0{picture.size}{rest}"))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rows": ParquetRows()}  # open files stay in their process


@dataclass(frozen=True)
class Dataset(PictureSet):
    """The same with labels.

    labels: each one's class
    names:  what the data call their classes, and which of the model's they were taken for; None: by numbers or labels
    """

    labels: tuple[int, ...]
    names: Mapping[str, int] | None = None

    def _taken(self, indices: Sequence[int]) -> Self:
        return replace(super()._taken(indices), labels=tuple(self.labels[index] for index in indices))

    def check_names(self, class_names: Sequence[str] | None) -> None:
        """Raises DatasetError unless its classes are those that a model calls so: it may have been opened without.

        class_names: as `open_dataset` takes them
        """
        names = own_names(class_names)
        if names is None or self.names is None:
            return
        meant = classes_of(list(self.names), len(names.names), self.source, names)
        others = [name for name, index in self.names.items() if meant[name] != index]
        if others:
            raise DatasetError(
                f"{self.source} was opened without this model's names of classes, and {first_few(others)} taken for "
                f"others; open it with class_names=model.recipe.labels, or give its path"
            )

    def sha256(self) -> str:
        """The same of the labels too: it tells whether this is the same data set."""
        return self._digest(f"\0{label}" for label in self.labels)


def open_pictures(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> PictureSet:
    """Lists pictures, of which none needs a label, and none but the standard input is read.

    source: a folder, a tar or a parquet file, a folder or a pattern of such, as `open_dataset` takes them; several such
            files; or what `open_named` takes

    Raises DatasetError when there are no pictures or a file is damaged; ArgumentError as `open_named`. Warns of what is
    left out.
    """
    given = [source] if isinstance(source, str | os.PathLike) else several("the sources", source)
    if not given:
        raise ArgumentError("the sources must be at least one, got none; name where the pictures are")
    for path in given:
        a_path("the source", path)
    paths = [os.fspath(path) for path in given]  # not by Path, which makes one slash of an address's two
    if not (len(paths) == 1 and os.path.isdir(paths[0])) and not _are_archives(paths):
        found = open_named(paths)
        if not any(not is_on_disk(picture.file) or os.path.lexists(picture.file) for picture in found.pictures):
            raise DatasetError(f"there is no file or folder {first_few(paths)}; name where the pictures are")
        return found
    kind, listed = _listed(paths, own_labels=False)
    return PictureSet(_called(paths), kind, tuple(listed.pictures))


def open_named(sources: Sequence[str]) -> PictureSet:
    """Pictures as a user names them: files, folders of them, patterns such as "photos/*.jpg", "-" for the one on the
    standard input, which is read here, and http and https addresses, which are fetched when they are asked for.

    Raises DatasetError for a folder or a pattern without pictures; ArgumentError for a standard input without one.
    """
    pictures = named_pictures(sources)
    piped = piped_picture() if STANDARD_INPUT in sources else b""
    return PictureSet(_called(sources), "named", tuple(pictures), piped=piped)


def open_files(paths: Sequence[str]) -> PictureSet:
    """Picture files by their paths, also where one looks like an address."""
    pictures = tuple(Picture(path, os.path.join(os.curdir, path), 0, 0) for path in paths)
    return PictureSet(_called(paths), "named", pictures)


def open_dataset(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Lists the pictures at `path` with their classes.

    path:        a folder with one folder of pictures a class; a folder of pictures, with `labels`; a tar or parquet
                 file; a folder of such; or a pattern of such, as "val-*.tar", "val-{0000..0049}.tar"
    labels:      a text file of names and labels (labels.labels_from_file), which then count; not for parquet
    num_classes: of the model, which the classes must fit; None: not known
    class_names: what the model calls them, as `model.recipe.labels`: the data's names are found among these, in any
                 order; None: not known. One for each class

    The order is that of the paths; inside a tar or parquet file, the file's own.

    Raises DatasetError when there are no pictures, a label is missing or none of the model's classes, a file is
    damaged, or it is not clear what is meant; ArgumentError for class_names and num_classes that cannot be. Warns of
    what is left out, and where the model says no names, and its classes are taken in the order of the data's names.
    Pictures themselves are not read.
    """
    num_classes = None if num_classes is None else whole("num_classes", num_classes)
    if class_names is not None:
        class_names = several("class_names", class_names)
        if not all(isinstance(name, str) for name in class_names):
            raise ArgumentTypeError(f"class_names must be texts, got {shown(repr(class_names))}")
        if num_classes not in (None, len(class_names)):
            raise ArgumentError(
                f"{len(class_names)} class_names for {num_classes} classes; give one for each, in order"
            )
        num_classes = len(class_names)
    names = own_names(class_names)
    path, labels = a_path("the data", path), None if labels is None else a_path("the label file", labels)
    kind, listed = _listed([os.fspath(path)], labels is None, num_classes, names)
    if labels is not None and kind == "parquet":
        raise DatasetError(f"{path}: parquet files have their labels inside; leave out the label file {labels}")
    if labels is not None:
        classes = labels_from_file(labels, listed.pictures, num_classes, names)
    elif listed.labels is None:
        raise DatasetError(
            f"{path} has {len(listed.pictures)} pictures without a label: they are not in a folder for each class; "
            f"give a label file too"
        )
    else:
        classes = listed.labels
    named = None if labels is not None else listed.names
    return Dataset(os.fspath(path), kind, tuple(listed.pictures), tuple(classes), named)


def _called(sources: Sequence[str]) -> str:
    return sources[0] if len(sources) == 1 else first_few(sources)


def _are_archives(paths: Sequence[str]) -> bool:
    """Whether one of them is a tar or parquet file, or a pattern of such, by their endings."""
    patterns = (path for path in paths if is_pattern(path) and not os.path.exists(path))
    names = [*filter(is_on_disk, paths), *(name for pattern in patterns for name in matching(pattern))]
    return any(Path(name).suffix.lower() in SHARDS or _is_compressed(Path(name)) for name in names)


def _listed(
    paths: Sequence[str], own_labels: bool, num_classes: int | None = None, names: Names | None = None
) -> tuple[str, Listed]:
    """The kind of data at `paths`, and the pictures there, with their classes if their own labels count."""
    kind, files = _found(paths)
    path = Path(paths[0])
    if kind == "folder":
        listed = list_folder(path, num_classes, names, own_labels)
    else:
        listed = (list_tar if kind == "tar" else list_parquet)(files, num_classes, names, own_labels)
    if not listed.pictures:
        packed = sorted(file.name for file in path.iterdir() if _is_compressed(file)) if kind == "folder" else []
        if packed:
            raise DatasetError(f"{path} has no pictures, but {first_few(packed)}: unpack them to tar files, or folders")
        raise DatasetError(f"{path} has no pictures; name a folder, a tar or a parquet file that has some")
    return kind, listed


def _found(paths: Sequence[str]) -> tuple[str, list[Path]]:
    """What kind of data is at `paths`, and which tar or parquet files."""
    path = first_few(paths)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        files = [entry for entry in sorted(Path(paths[0]).iterdir()) if _is_shard(entry)]
        if not files:
            return "folder", []
    else:
        files = [Path(name) for path in paths for name in ([path] if os.path.exists(path) else _matching(path))]
        absent = [str(file) for file in files if not file.exists()]
        if absent:
            raise DatasetError(f"there is no file or folder {first_few(absent)}; name where the pictures are")
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= {*SHARDS}:
        advice = "unpack it" if any(map(_is_compressed, files)) else "name one kind"
        raise DatasetError(
            f"{path}: {first_few(file.name for file in files)}: give a folder of pictures, tar files or parquet files; "
            f"{advice}"
        )
    splits = {match[1] for match in map(SPLIT.fullmatch, (file.name for file in files)) if match}
    if len(splits) > 1:
        raise DatasetError(
            f"{path} has the splits {', '.join(sorted(splits))}; name one of them, as in '{max(splits)}-*.parquet'"
        )
    return kinds.pop().removeprefix("."), files


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(COMPRESSED)


def _matching(pattern: str) -> list[str]:
    """The same of archives. What of its {08..10} stands for none stands for itself, so that it is missed."""
    return [name for one in expanded(pattern) for name in files_like(one) or [one]]


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in SHARDS and not path.name.startswith(".") and path.is_file()
