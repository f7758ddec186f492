"""Pictures in a folder and those below it, by one rule for every command.

Links are followed, each folder once; one that leads back into the folder is left out. Hidden files and folders are left
out, such as those of macOS and Jupyter.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DatasetError, shown
from .classes import Names, classes_of
from .labels import Listed, Picture, is_picture
from .left_out import LeftOut


def pictures_below(folder: Path) -> list[Picture]:
    """The pictures in a folder and in all below it, called by their path from it, in the order of their paths. One that
    cannot be read, such as a broken link, is among them, and found when it is read.

    Warns of what is left out. Raises DatasetError when a folder cannot be read.
    """
    found, left_out = [], LeftOut()
    root = Path(os.path.realpath(folder))
    entered: set[tuple[int, int]] = set()
    waiting = [""]  # folders, by their path from the root; no recursion: they may be deep
    while waiting:
        place = waiting.pop()
        try:
            status = os.stat(folder / place)
            if (status.st_dev, status.st_ino) in entered:
                left_out.add("links to a folder that counts already", place)
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / place) as entries:
                for entry in entries:
                    name = f"{place}/{entry.name}" if place else entry.name
                    if entry.name.startswith("."):
                        if _is_folder(entry) or is_picture(entry.name[1:]):
                            left_out.add("hidden files and folders", name)
                    elif _is_folder(entry):
                        if entry.is_symlink() and _overlap(Path(os.path.realpath(entry.path)), root):
                            left_out.add("links to a folder that counts already", name)
                        else:
                            waiting.append(name)
                    elif is_picture(entry.name):
                        found.append(Picture(name, entry.path, 0, _size(entry)))
                    else:
                        left_out.add("files that are no pictures", name)
        except OSError as error:
            raise DatasetError(f"{folder / shown(place)}: the folder cannot be read ({error.strerror})") from error
    left_out.say(str(folder))
    return sorted(found, key=lambda picture: picture.name.split("/"))


def list_folder(folder: Path, num_classes: int | None, class_names: Names | None, own_labels: bool) -> Listed:
    """The pictures below `folder`; its folders are the classes, if their labels count.

    Raises DatasetError as `pictures_below` does, and when there are pictures beside class folders.
    """
    pictures = pictures_below(folder)
    loose = [picture.name for picture in pictures if "/" not in picture.name]
    if not own_labels or len(loose) == len(pictures):
        return Listed(pictures, None)
    if loose:
        raise DatasetError(
            f"{folder} has {len(loose)} pictures beside its class folders, first {shown(loose[0])}; take them away, "
            f"or give a label file"
        )
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    index = classes_of(sorted(names), num_classes, str(folder), class_names)
    return Listed(pictures, [index[picture.name.partition("/")[0]] for picture in pictures], index)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Or a link to one; not one that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _overlap(path: Path, root: Path) -> bool:
    """Whether one real path is the other, or in it."""
    return path.is_relative_to(root) or root.is_relative_to(path)


def _size(entry: os.DirEntry[str]) -> int:
    """In bytes; 0 if it cannot be told."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0
