"""COCO's annotation files (instances_*.json): pictures with boxes and outlines of objects, each checked."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import DatasetError, a_path, first_few, shown, whole
from ..storage.regular import read_regular

MOST_BYTES = 1 << 30  # of a file; that of COCO's 118,000 training pictures has 449 MB
MOST_SIDE = 65_535  # pixels: those of a picture are counted in 32 bits
LARGEST = float(MOST_SIDE**2)  # of any other number
LONGEST = 1_000_000.0  # pixels of a polygon's edges, which pycocotools walks along
PARTS = ("images", "categories", "annotations")


class CocoPicture(NamedTuple):
    """A picture of width x height pixels, by its name in the annotation file and by its path."""

    name: str
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says.

    sha256:      of the file
    pictures:    in the order of their ids
    categories:  their names, in the order of their ids
    annotations: with COCO's keys; "image_id" and "category_id" are places in `pictures` and `categories`, "id" counts
                 from 1, "segmentation" is a list of polygons, run lengths that are not compressed, or absent
    """

    source: str
    sha256: str
    pictures: tuple[CocoPicture, ...]
    categories: tuple[str, ...]
    annotations: tuple[dict[str, Any], ...]


def read_coco(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, outlines: bool, limit: int | None = None
) -> CocoFile:
    """Reads an annotation file and finds its pictures in `folder`.

    outlines: whether each object must have one
    limit:    take at most so many pictures, evenly from all in the order of their ids

    Raises DatasetError for a file that cannot be read or is no annotation file, for names that leave the folder, and
    when one of the pictures is not there; ArgumentError for a limit that is none.
    """
    path, folder = a_path("the annotation file", path), a_path("the folder of pictures", folder)
    try:
        content = read_regular(path, MOST_BYTES)
        value = json.loads(content)
    except OSError as error:
        raise DatasetError(
            f"{path}: the annotation file cannot be read ({error.strerror}); give COCO's instances_*.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: no JSON ({shown(error)}); give COCO's instances_*.json") from error
    reader = _Reader(path, value)
    images, categories = reader.by_id("images"), reader.by_id("categories")
    if not images or not categories:
        raise DatasetError(f"{path} has {len(images)} images and {len(categories)} categories; give one that has both")
    pictures = {number: reader.picture(image, folder) for number, image in images.items()}
    names = [reader.name(category) for category in categories.values()]
    objects = [reader.annotation(one, pictures, categories, outlines) for one in reader.by_id("annotations").values()]
    numbers = [*pictures]
    count = len(numbers) if limit is None else min(whole("limit", limit), len(numbers))
    place = {numbers[index * len(numbers) // count]: index for index in range(count)}
    order = {number: index for index, number in enumerate(categories)}
    kept = [one for one in objects if one["image_id"] in place]
    found = CocoFile(
        str(path),
        hashlib.sha256(content).hexdigest(),
        tuple(pictures[number] for number in place),
        tuple(names),
        tuple(
            {**one, "id": index, "image_id": place[one["image_id"]], "category_id": order[one["category_id"]]}
            for index, one in enumerate(kept, start=1)  # to pycocotools, 0 is no object
        ),
    )
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder}: there is no such folder; give the one that has the pictures of {path}")
    absent = [picture.name for picture in found.pictures if not os.path.isfile(picture.path)]
    if absent:
        raise DatasetError(
            f"{folder}: {len(absent)} of {count} pictures of {path} are not there: {first_few(absent)}; give the "
            f"folder that has them"
        )
    return found


def uncompressed(text: str, pixels: int) -> list[int]:
    """COCO's compressed run lengths of a mask of so many pixels, as numbers.

    They are in groups of 5 bits, the lowest first, as ASCII from "0" on; the sixth bit says that another follows. From
    the fourth on each is the difference from the one two before. Raises ValueError for what is none.
    """
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("no run lengths")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # beyond 32 bits
        raise ValueError("no run lengths")
    values = np.add.reduceat((digits & 31) << 5 * place, starts)
    values -= np.where(digits[ends] & 16, 1 << 5 * (place[ends] + 1), 0)  # the sign
    for first in (1, 2):
        values[first::2] = values[first::2].cumsum()
    return _of_all(values.tolist(), pixels)


def _of_all(counts: Any, pixels: int) -> list[int]:
    """Raises ValueError unless they are run lengths of so many pixels."""
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("no run lengths")
    if sum(counts) != pixels:
        raise ValueError(f"run lengths of {shown(sum(counts))} pixels for {pixels}")
    return counts


class _Reader:
    """Checks the parts of one file. Raises DatasetError, with the file, the entry and what it must be."""

    def __init__(self, path: Path, value: Any) -> None:
        self._path = path
        if not isinstance(value, dict) or not all(isinstance(value.get(part), list) for part in PARTS):
            raise DatasetError(f"{path} must have the lists {', '.join(PARTS)}; give COCO's instances_*.json")
        self._value = value

    def by_id(self, part: str) -> dict[int, dict[str, Any]]:
        """The entries in the order of their ids."""
        entries = self._value[part]
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise DatasetError(f"{self._path}: {part}[{index}] must be an object with a whole number as its id")
        ids = Counter(entry["id"] for entry in entries)
        twice = [number for number, count in ids.items() if count > 1]
        if twice:
            raise DatasetError(f"{self._path}: several {part} have the id {first_few(twice)}; give each its own")
        return {entry["id"]: entry for entry in sorted(entries, key=lambda entry: entry["id"])}

    def picture(self, image: dict[str, Any], folder: Path) -> CocoPicture:
        where = f"image {shown(image['id'])}"
        name: Any = image.get("file_name")
        sides: list[Any] = [image.get("width"), image.get("height")]
        if not isinstance(name, str) or not _stays(name):
            self._refuse(where, "file_name must be a path inside the folder of pictures", name)
        if not all(type(side) is int and 0 < side <= MOST_SIDE for side in sides):
            self._refuse(where, f"width and height must be whole numbers from 1 to {MOST_SIDE}", sides)
        width, height = sides
        return CocoPicture(name, os.path.join(folder, name), width, height)

    def name(self, category: dict[str, Any]) -> str:
        name = category.get("name")
        if not isinstance(name, str):
            self._refuse(f"category {shown(category['id'])}", "name must be a text", name)
        return name

    def annotation(
        self, one: dict[str, Any], pictures: dict[int, CocoPicture], categories: dict[int, Any], outlines: bool
    ) -> dict[str, Any]:
        """Its keys that count, with ids as the file has them."""
        where = f"annotation {shown(one['id'])}"
        found: dict[str, Any] = {key: one.get(key) for key in ("image_id", "category_id", "bbox", "area")}
        for key, known in (("image_id", pictures), ("category_id", categories)):
            if type(found[key]) is not int or found[key] not in known:
                self._refuse(where, f"{key} must be the id of one of the file's", found[key])
        box, area, crowd = found["bbox"], found["area"], one.get("iscrowd", 0)
        if not isinstance(box, list) or len(box) != 4 or not _numbers(box) or min(box[2:]) < 0:
            self._refuse(where, "bbox must be four numbers, x, y, width and height", box)
        if not _numbers([area]) or area < 0:
            self._refuse(where, "area must be a number of pixels", area)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            self._refuse(where, "iscrowd must be 0 or 1", crowd)
        found["iscrowd"] = int(crowd)
        if outlines:
            picture = pictures[one["image_id"]]
            found["segmentation"] = self._outline(where, one.get("segmentation"), picture.height, picture.width)
        return found

    def _outline(self, where: str, value: Any, height: int, width: int) -> Any:
        if isinstance(value, list):
            if not value or not all(map(_is_polygon, value)):
                self._refuse(
                    where,
                    f"segmentation must be run lengths, or polygons of three points or more, x and y in turn, with "
                    f"edges of at most {LONGEST:,.0f} pixels together",
                    value,
                )
            return value
        if not isinstance(value, dict) or value.get("size") != [height, width]:
            self._refuse(where, f"segmentation must be polygons, or run lengths of the size [{height}, {width}]", value)
        counts = value.get("counts")
        try:
            found = uncompressed(counts, height * width) if isinstance(counts, str) else _of_all(counts, height * width)
        except ValueError as error:
            raise DatasetError(f"{self._path}: {where}: segmentation: {error}; give those of its picture") from error
        return {"size": [height, width], "counts": found}

    def _refuse(self, where: str, what: str, value: Any) -> NoReturn:
        raise DatasetError(f"{self._path}: {where}: {what}, got {shown(reprlib.repr(value), 100)}")


def _stays(name: str) -> bool:
    """Whether a path leads into the folder that it starts from, on any system."""
    path = PureWindowsPath(name)  # it knows both separators, and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _numbers(values: Sequence[Any]) -> bool:
    """Whether each is a number, and neither NaN nor huge."""
    return all(type(value) in (int, float) and -LARGEST <= value <= LARGEST for value in values)


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2 or not _numbers(value):
        return False
    points = np.array(value, np.float64).reshape(-1, 2)
    return bool(np.abs(points - np.roll(points, 1, 0)).max(1).sum() <= LONGEST)
