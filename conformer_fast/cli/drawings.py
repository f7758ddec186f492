"""Where pictures are saved on which a result is drawn, and how."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import conformer_fast as cf

from ..errors import ArgumentError, a_path, shown

if TYPE_CHECKING:
    from PIL import Image

    from ..datasets.dataset import PictureSet

FILES = (".png", ".jpg", ".jpeg")


def add_save(parser: argparse.ArgumentParser, ending: str) -> None:
    """ending: of the names of pictures in a folder"""
    parser.add_argument(
        "--save",
        metavar="OUT",
        help=f"draw the result: into a .png or .jpg file for one picture, for several into a folder, as NAME{ending}",
    )


def places_of(out: str | None, pictures: PictureSet, ending: str) -> Sequence[Path | None]:
    """Where each picture is drawn. Raises ArgumentError, before any work, for a place that cannot be, or where
    something is."""
    from ..datasets.labels import PICTURES
    from ..storage.outputs import check_output

    if out is None:
        return [None] * len(pictures)
    path = a_path("--save", out)
    is_file = path.suffix.lower() in FILES
    if (path.suffix.lower() in PICTURES and not is_file) or out == "-":
        raise ArgumentError(f"--save writes {', '.join(FILES)} files, or into a folder, got {shown(out)}")
    if is_file and out.endswith("/"):
        raise ArgumentError(f"--save {shown(out)} is a folder by its end and a file by its name; leave one out")
    if is_file and len(pictures) > 1:
        raise ArgumentError(f"{len(pictures)} pictures are drawn into a folder; give --save one, not {shown(out)}")
    if is_file:
        places = [path]
    else:
        places = [path / f"{_stem(picture.file)}{ending}" for picture in pictures.pictures]
        drawn: dict[Path, str] = {}
        for place, picture in zip(places, pictures.pictures, strict=True):
            if place in drawn:
                raise ArgumentError(
                    f"{shown(drawn[place])} and {shown(picture.file)} have the same name, and would both be drawn into "
                    f"{shown(place)}; rename one, or draw them one by one"
                )
            drawn[place] = picture.file
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArgumentError(
                f"--save {shown(out)} is a file, or below one; give a folder or another name"
            ) from error
    for place in places:
        check_output(place, [picture.file for picture in pictures.pictures])
        if os.path.lexists(place):
            raise ArgumentError(f"{place} is there already, and no command writes over pictures; give --save another")
    return places


def _save(place: Path, picture: Image.Image) -> None:
    from ..storage.outputs import write_output

    file = BytesIO()
    picture.save(file, "PNG" if place.suffix.lower() == ".png" else "JPEG")
    write_output(place, file.getvalue())


def drawn(
    command: str,
    results: Iterable[tuple[Any, Image.Image | None]],
    places: Sequence[Path | None],
    draw: Callable[[Image.Image, Any], Image.Image],
    damaged: list[cf.Damaged],
) -> Iterator[Any]:
    """Each result of a picture, drawn where there is a place. Damaged ones are said, and noted in the list.

    results: with the picture that each is of; draw: a result on its picture
    """
    for (one, image), place in zip(results, places, strict=True):
        if isinstance(one, cf.Damaged):
            damaged.append(one)
            print(f"conformer-fast {command}: {shown(one.error, 1000)}", file=sys.stderr)
        elif place is not None and image is not None:
            _save(place, draw(image, one))
        yield one


def _stem(name: str) -> str:
    """What a picture is called without its folder and its ending, also of an address and of the standard input."""
    from ..datasets.addresses import is_address
    from ..datasets.named import STANDARD_INPUT

    if name == STANDARD_INPUT:
        return "stdin"
    if is_address(name):  # maybe a wrong one, which is told when it is fetched
        path = re.split("[?#]", name.partition("://")[2])[0].partition("/")[2]
        return PurePosixPath(path).stem or "picture"
    return Path(name).stem
