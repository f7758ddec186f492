"""A labeled picture, and which class a label means: by number, by ImageNet synset, by folder or from a file.

Numbers are 0 ... num_classes - 1 in the order of the model's scores. ImageNet's models have their classes in the order
of the synsets' names ("n01440764", ...), which is also that of mmpretrain, torchvision, timm and Hugging Face's
imagenet-1k. The ids 1 ... 1000 of ILSVRC's own development kit have another order, so a bare list of them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from ..errors import DatasetError, first_few
from ..model.class_names import IMAGENET_CLASSES, imagenet_synsets

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


def is_picture(name: str) -> bool:
    """By its ending. Hidden files are none; macOS leaves such beside pictures."""
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def label_of(text: str, num_classes: int | None, where: str) -> int:
    """The class that a label's text means: a number, or a synset of ImageNet where the model has its 1000 classes.

    num_classes: of the model; None when it is not known, then any number from 0 goes. where: for the message

    Raises DatasetError for any other text, and for a number that is no class of the model.
    """
    if text in _synsets() and num_classes in (None, IMAGENET_CLASSES):
        return _synsets()[text]
    try:
        number = int(text)
    except ValueError:
        raise DatasetError(
            f"{where}: the label {text!r} is neither a number nor, for 1000 classes, an ImageNet synset such as "
            f"n01440764"
        ) from None
    if number == -1:
        raise DatasetError(f"{where}: the label -1 means unlabeled, as in test splits; take the validation split")
    if number < 0 or (num_classes is not None and number >= num_classes):
        classes = "0 or more" if num_classes is None else f"0 ... {num_classes - 1}, the model's classes"
        raise DatasetError(f"{where}: the label {number} is none of {classes}; numbers begin at 0")
    return number


def classes_of_folders(names: Collection[str], num_classes: int | None, where: str) -> dict[str, int]:
    """Folder name -> class. ImageNet's synsets have their own classes, so some may be absent; other names are numbered
    in sorted order, so all must be there.

    Raises DatasetError when there are more or fewer other names than the model has classes (None: not known).
    """
    if num_classes in (None, IMAGENET_CLASSES) and _synsets().keys() >= set(names):
        return {name: _synsets()[name] for name in names}
    if num_classes is not None and len(names) != num_classes:
        raise DatasetError(
            f"{where} has {len(names)} class folders ({first_few(sorted(names))}), the model has {num_classes} "
            f"classes; name the folder that holds one folder a class, where a class without pictures has an empty one, "
            f"or give a label file"
        )
    return {name: index for index, name in enumerate(sorted(names))}


def labels_from_file(path: str | os.PathLike[str], pictures: Sequence[Picture], num_classes: int | None) -> list[int]:
    """One class a picture, in their order, from a text file. Each of its lines has one of these forms:

        ILSVRC2012_val_00000001.JPEG 65                  a number, as mmpretrain and Caffe write it
        ILSVRC2012_val_00000001.JPEG n01751748           a synset; commas and tabs may part the two, too
        ILSVRC2012_val_00000001,n01751748 111 108 ...    Kaggle's LOC_val_solution.csv with its first line
        n01751748                                        a synset alone, one line a picture, in the order of the names

    A name is the picture's path below the data's folder, or in its archive, or the path's last part; its ending may be
    left out.

    Raises DatasetError when the file cannot be read, a line or a name means nothing or two things, a picture has no
    line, or a line has no picture.
    """
    lines = _lines(path)
    if len(lines[0][1].split()) == 1 and "," not in lines[0][1]:
        return _in_order(path, lines, pictures, num_classes)
    index = _by_name(pictures)
    found: dict[str, int] = {}
    absent = []
    for number, line in lines:
        name, label = _parted(line, f"{path}, line {number}")
        if number == 1 and (name, label) == ("ImageId", "PredictionString"):
            continue
        if name not in index:
            absent.append(name)
            continue
        picture = index[name]
        if picture is None:
            raise DatasetError(f"{path}, line {number}: several pictures are called {name}; write their whole paths")
        if picture in found:
            raise DatasetError(f"{path}, line {number}: {picture} has a label already; leave one of the lines")
        found[picture] = label_of(label, num_classes, f"{path}, line {number}")
    if absent:
        raise DatasetError(
            f"{path}: {len(absent)} of {len(lines)} lines name a picture that is not there: {first_few(absent)}; "
            f"get the pictures, or leave out their lines"
        )
    bare = [picture.name for picture in pictures if picture.name not in found]
    if bare:
        raise DatasetError(f"{path}: {len(bare)} of {len(pictures)} pictures have no line: {first_few(bare)}; add them")
    return [found[picture.name] for picture in pictures]


@cache
def _synsets() -> Mapping[str, int]:
    return {synset: index for index, synset in enumerate(imagenet_synsets())}


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: the label file cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: the label file is no UTF-8 text; give lines of a picture's name and label"
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: the label file is empty; give lines of a picture's name and label")
    return lines


def _parted(line: str, where: str) -> tuple[str, str]:
    """(name, label). What follows the label after a comma is left out: Kaggle's boxes."""
    name, comma, rest = line.partition(",")
    parts = [name, *rest.split()[:1]] if comma else line.rsplit(maxsplit=1)
    if len(parts) != 2:
        raise DatasetError(f"{where}: {line!r} is not a picture's name and its label")
    return parts[0].strip().removeprefix("./"), parts[1]


def _in_order(
    path: str | os.PathLike[str], lines: list[tuple[int, str]], pictures: Sequence[Picture], num_classes: int | None
) -> list[int]:
    strange = [(number, text) for number, text in lines if text not in _synsets()]
    if strange:
        number, text = strange[0]
        raise DatasetError(
            f"{path}, line {number}: {text!r} alone does not say which class is meant: ILSVRC's ids 1 ... 1000 have "
            f"another order than the models' scores. Give lines of a picture's name and its synset or number, such as "
            f"LOC_val_solution.csv, or a synset a line"
        )
    if len(lines) != len(pictures):
        raise DatasetError(f"{path} has {len(lines)} lines for {len(pictures)} pictures; without names, give one each")
    by_name = sorted(range(len(pictures)), key=lambda index: pictures[index].name)
    labels = [0] * len(pictures)
    for index, (number, text) in zip(by_name, lines, strict=True):
        labels[index] = label_of(text, num_classes, f"{path}, line {number}")
    return labels


def _by_name(pictures: Sequence[Picture]) -> dict[str, str | None]:
    """All that a picture may be called -> its name; None for what several may be called."""
    index: dict[str, str | None] = {}
    for picture in pictures:
        path = PurePosixPath(picture.name)
        for name in {picture.name, str(path.with_suffix("")), path.name, path.stem}:
            index[name] = None if name in index else picture.name
    return index | {picture.name: picture.name for picture in pictures}
