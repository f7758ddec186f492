"""Where a picture is, and the labels of pictures from a text file."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from ..errors import DatasetError, first_few, shown
from ..model.class_names import IMAGENET_CLASSES
from ..storage.regular import read_regular
from .classes import DEVKIT, Names, is_synset, label_of, same_form

LABEL_FILE_BYTES = 1 << 28  # of a label file; ImageNet's have 2 MB
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif")


@dataclass(frozen=True)
class Picture:
    """Where a picture's bytes are.

    name:  what it is called in messages, unlike any other of its data set
    file:  the path of the picture, or of the archive that it is in
    start: its first byte in the file; in a parquet file its row
    size:  its bytes; those of the whole file for parquet, where a single picture's are not known beforehand
    """

    name: str
    file: str
    start: int
    size: int


class Listed(NamedTuple):
    """pictures: in the order of the files. labels: one class each, None where the data tell none. names: what the data
    call their classes, and which of the model's they were taken for."""

    pictures: list[Picture]
    labels: list[int] | None
    names: Mapping[str, int] | None = None


def is_picture(name: str) -> bool:
    """By its ending. Hidden files are none; macOS leaves such beside pictures."""
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def labels_from_file(
    path: str | os.PathLike[str], pictures: Sequence[Picture], num_classes: int | None, class_names: Names | None = None
) -> list[int]:
    """One class a picture, in their order, from a text file. Each of its lines has one of these forms:

        ILSVRC2012_val_00000001.JPEG 65                  a number, as mmpretrain and Caffe write it
        ILSVRC2012_val_00000001.JPEG n01751748           a synset; commas and tabs may part the two, too
        a.jpg,golden retriever                           what the model calls the class; a space may part the two, too
        ILSVRC2012_val_00000001,n01751748 111 108 ...    Kaggle's LOC_val_solution.csv with its first line
        n01751748                                        a synset alone, one line a picture, in the order of the names

    A first line of headings is left out. Further columns are refused: any of them may be the class. A name or label
    with a comma may stand in quotes, as in CSV. A name is the picture's path below the data's folder, or in its
    archive, or the path's last part; its ending may be left out.

    Raises DatasetError when the file cannot be read, a line or a name means nothing or two things, a picture has no
    line, or a line has no picture.
    """
    lines = _lines(path)
    if len(lines[0][1].split()) == 1 and "," not in lines[0][1]:
        return _in_order(path, lines, pictures, num_classes, class_names)
    index = _by_name(pictures)
    longest = max(map(len, index))
    found: dict[str, int] = {}
    absent = []
    for number, line in lines:
        name, label = _parted(line, f"{path}, line {number}", index, longest)
        key = same_form(name)
        if key not in index:
            if number == lines[0][0] and not is_picture(name) and _is_heading(label, num_classes, class_names):
                continue
            absent.append(name)
            continue
        picture = index[key]
        if picture is None:
            raise DatasetError(
                f"{path}, line {number}: several pictures are called {shown(name)}; write their whole paths"
            )
        if picture in found:
            raise DatasetError(f"{path}, line {number}: {shown(picture)} has a label already; leave one of the lines")
        label = _without_boxes(label, class_names)
        found[picture] = label_of(label, num_classes, f"{path}, line {number}", class_names)
    if absent:
        raise DatasetError(
            f"{path}: {len(absent)} of {len(lines)} lines name a picture that is not there: {first_few(absent)}; "
            f"get the pictures, or leave out their lines"
        )
    bare = [picture.name for picture in pictures if picture.name not in found]
    if bare:
        raise DatasetError(f"{path}: {len(bare)} of {len(pictures)} pictures have no line: {first_few(bare)}; add them")
    return [found[picture.name] for picture in pictures]


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = read_regular(path, LABEL_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(
            f"{path}: the label file cannot be read ({error.strerror}); give lines of a picture's name and label"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: the label file is no UTF-8 text; give lines of a picture's name and label"
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: the label file is empty; give lines of a picture's name and label")
    return lines


def _parted(line: str, where: str, index: Collection[str], longest: int) -> tuple[str, str]:
    """(name, label).

    index: what the pictures may be called, `longest` characters at most
    """
    try:
        if "\t" in line:
            parts = next(csv.reader([line], delimiter="\t"))
        elif "," in line:
            parts = next(csv.reader([line], skipinitialspace=True))
        else:
            parts = _parted_at_space(line, index, longest)
    except csv.Error as error:
        raise DatasetError(f"{where}: {shown(repr(line))} is no line of CSV ({error})") from error
    if len(parts) < 2 or not parts[1].strip():
        raise DatasetError(f"{where}: {shown(repr(line))} is not a picture's name and its label")
    if any(part.strip() for part in parts[2:]):
        raise DatasetError(
            f"{where}: {shown(repr(line))} has {len(parts)} columns; write only the picture and its class, in quotes "
            f"where they have a comma"
        )
    return parts[0].strip().removeprefix("./"), parts[1].strip()


def _parted_at_space(line: str, index: Collection[str], longest: int) -> list[str]:
    """Behind the longest name of a picture, else before the last word: names and labels may have spaces."""
    line = same_form(line).removeprefix("./")
    parts = line.rsplit(maxsplit=1)
    for space in re.finditer(r"\s+", line):
        if space.start() > longest:
            break
        if line[: space.start()] in index:
            parts = [line[: space.start()], line[space.end() :]]
    return parts


def _without_boxes(label: str, class_names: Names | None) -> str:
    """The synset before Kaggle's boxes; any other label as it is."""
    first, *others = label.split()
    boxes = is_synset(first) and all(word == first or word.isdecimal() for word in others)
    return first if boxes and not (class_names and class_names.classes(label)) else label


def _is_heading(text: str, num_classes: int | None, class_names: Names | None = None) -> bool:
    """Whether it stands above labels: neither a number nor a label's text."""
    if text.removeprefix("-").isdecimal():
        return False
    try:
        label_of(text, num_classes, "", class_names)
    except DatasetError:
        return True
    return False


def _in_order(
    path: str | os.PathLike[str],
    lines: list[tuple[int, str]],
    pictures: Sequence[Picture],
    num_classes: int | None,
    class_names: Names | None,
) -> list[int]:
    if len(lines) == len(pictures) + 1 and _is_heading(lines[0][1], num_classes, class_names):
        lines = lines[1:]
    strange = next(((number, text) for number, text in lines if not is_synset(text)), None)
    if strange:
        number, text = strange
        if not text.isdecimal() or class_names or num_classes not in (None, IMAGENET_CLASSES):
            raise DatasetError(
                f"{path}, line {number}: {shown(repr(text))} is not a picture's name and its class; write a line a "
                f"picture of both, apart by a comma, such as 'a.png,cat'"
            )
        raise DatasetError(
            f"{path}, line {number}: {shown(repr(text))} alone does not say which class is meant: {DEVKIT}. Give lines "
            f"of a picture's name and its synset or number, such as LOC_val_solution.csv, or a synset a line"
        )
    if len(lines) != len(pictures):
        raise DatasetError(f"{path} has {len(lines)} lines for {len(pictures)} pictures; without names, give one each")
    by_name = sorted(range(len(pictures)), key=lambda index: pictures[index].name)
    labels = [0] * len(pictures)
    for index, (number, text) in zip(by_name, lines, strict=True):
        labels[index] = label_of(text, num_classes, f"{path}, line {number}", class_names)
    return labels


def _by_name(pictures: Sequence[Picture]) -> dict[str, str | None]:
    """All that a picture may be called -> its name; None for what several may be called."""
    index: dict[str, str | None] = {}
    for picture in pictures:
        path = PurePosixPath(same_form(picture.name))
        for name in {str(path), str(path.with_suffix("")), path.name, path.stem}:
            index[name] = None if name in index else picture.name
    return index | {same_form(picture.name): picture.name for picture in pictures}
