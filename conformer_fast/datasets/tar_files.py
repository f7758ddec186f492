"""Pictures inside tar files, and their labels, listed without unpacking anything.

Samples of WebDataset (KEY.jpg beside KEY.cls or KEY.json), or pictures in class folders, or pictures alone. As in a
folder, the outermost folders are the classes, below those that all pictures are in, which most tar files have. Only
headers and labels are read; a picture's bytes are later read from their place in the file. Names of members are
only names: nothing is written, and links are left out.

It is our own, over tarfile, because webdataset streams a tar file; here any picture is read by its number, in a fixed
order, so that an interrupted evaluation can go on.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import DatasetError, first_few, shown
from ..storage.regular import open_regular
from .classes import Names, check_not_renumbered, classes_of, label_of
from .labels import Listed, Picture, is_picture
from .left_out import LeftOut

Folders = tuple[str, ...]  # that a picture is in, the outermost first

LABELS = (".cls", ".json")
LABEL_BYTES = 1 << 20  # a longer label file is none
HEADER_BYTES = 1 << 22  # that one member of a tar file may have before its content


def list_tar(files: Sequence[Path], num_classes: int | None, class_names: Names | None, own_labels: bool) -> Listed:
    """The pictures in tar files and, if their own labels count, their classes.

    Raises DatasetError when a file is compressed, damaged or no tar file, or when only some pictures have a label.
    """
    pictures: list[Picture] = []
    texts: dict[str, str] = {}  # picture -> its label
    folders: dict[str, Folders] = {}  # picture -> those that it is in
    others: set[Folders] = set()
    left_out = LeftOut()
    for file in files:
        prefix = f"{file.name}/" if len(files) > 1 else ""
        labels: dict[str, str] = {}  # path without ending -> label
        here: list[tuple[PurePosixPath, Picture]] = []
        for member, path, text in _members(file, left_out, own_labels):
            if text is not None:
                if path.suffix.lower() == ".cls" or _stem(path) not in labels:  # of both, the .cls counts
                    labels[_stem(path)] = text
            elif member.isdir():
                others.add(_folders(path))
            else:
                here.append((path, Picture(f"{prefix}{path}", str(file), member.offset_data, member.size)))
                folders[here[-1][1].name] = _folders(path.parent)
        pictures += [picture for _, picture in here]
        if len({picture.name for picture in pictures}) < len(pictures):
            raise DatasetError(f"{file} has a picture twice, or one of a tar file of the same name; rename one")
        for path, picture in here:
            text = _text_of(path, labels)
            if text is not None:
                texts[picture.name] = text
    where = first_few(map(str, files))
    left_out.say(where)
    if not own_labels:
        return Listed(pictures, None)
    if texts:
        bare = [picture.name for picture in pictures if picture.name not in texts]
        if bare:
            raise DatasetError(
                f"{where}: {len(bare)} of {len(pictures)} pictures have no .cls or .json label: {first_few(bare)}"
            )
        found = [
            label_of(texts[it.name], num_classes, f"{where}: the label of {shown(it.name)}", class_names)
            for it in pictures
        ]
        if all(text.isdecimal() for text in texts.values()):
            check_not_renumbered(found, num_classes, where, class_names)
        return Listed(pictures, found)
    if not all(folders.values()) or not pictures:
        return Listed(pictures, None)
    root = _root(list(folders.values()))
    for name in root:
        if _is_class(name, num_classes, class_names):
            raise DatasetError(
                f"{where}: all pictures are in the folder {shown(name)}, which may be their class or hold the folders "
                f"of the classes; rename it, or give a label file"
            )
    level = len(root)
    names = {path[level] for path in others | set(folders.values()) if path[:level] == root and len(path) > level}
    classes = classes_of(sorted(names), num_classes, where, class_names)
    return Listed(pictures, [classes[folders[picture.name][level]] for picture in pictures], classes)


def _folders(path: PurePosixPath) -> Folders:
    return tuple(part for part in path.parts if part not in ("/", "//", ".."))


def _root(folders: Sequence[Folders]) -> Folders:
    """Those that hold the folders of the classes: all that every picture is in, but none's last one."""
    first, last = min(folders), max(folders)  # what these begin with, all do
    most = min(map(len, folders)) - 1
    shared = next((level for level in range(most) if first[level] != last[level]), most)
    return first[:shared]


def _is_class(name: str, num_classes: int | None, class_names: Names | None) -> bool:
    try:
        label_of(name, num_classes, "", class_names)
    except DatasetError:
        return False
    return True


def _members(
    file: Path, left_out: LeftOut, own_labels: bool
) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath, str | None]]:
    """Folders, pictures and, if they count, labels; for a label its text."""
    with _opened(file) as (archive, bounded):
        size = os.path.getsize(file)
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
            bounded.left = HEADER_BYTES
            path = PurePosixPath(member.name)
            if any(part.startswith(".") and part != ".." for part in path.parts):
                if is_picture(path.name.removeprefix(".")):
                    left_out.add("hidden files", member.name)
            elif member.isdir():
                yield member, path, None
            elif not member.isreg() or member.issparse():
                left_out.add("links and special files", member.name)
            elif own_labels and path.suffix.lower() in LABELS and member.size <= LABEL_BYTES:
                opened = archive.extractfile(member)
                assert opened is not None
                text = _label(path, opened.read(), str(file))
                bounded.left = HEADER_BYTES
                if text is not None:
                    yield member, path, text
            elif is_picture(member.name):
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member, path, None


class _Bounded(io.BufferedReader):
    """A file of which no more than `left` bytes are read: tarfile takes as much memory as a header asks for."""

    left = HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of over {HEADER_BYTES} bytes")
        content = super().read(size)
        self.left -= max(1, len(content))  # nothing, at the file's end, counts too
        return content


@contextmanager
def _opened(file: Path) -> Iterator[tuple[tarfile.TarFile, _Bounded]]:
    """For what reads headers. Its errors, but our own, become a DatasetError."""
    try:
        with open_regular(file) as opened:
            bounded = _Bounded(opened.raw)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                yield archive, bounded
    except DatasetError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DatasetError(
            f"{file}: not a whole, uncompressed tar file ({shown(error)}); get it again, or unpack .tar.gz to .tar, "
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
        raise DatasetError(
            f"{file}: {shown(path)} is no label ({shown(error)}); a .cls is a number, a .json has 'label'"
        ) from error
    return None if label is None else str(label)


def _text_of(picture: PurePosixPath, labels: dict[str, str]) -> str | None:
    """The label whose name is the picture's, or begins it up to a dot: a.cls for a.jpg and a.v2.jpg, but a.1.cls for
    a.1.jpg alone."""
    stem = _stem(picture)
    while stem not in labels:
        shorter, dot, rest = stem.rpartition(".")
        if not dot or "/" in rest:
            return None
        stem = shorter
    return labels[stem]


def _stem(path: PurePosixPath) -> str:
    return str(path.with_suffix(""))
