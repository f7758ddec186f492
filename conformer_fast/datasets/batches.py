"""Images in batches that are read whenever one is asked for."""

from __future__ import annotations

import hashlib
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, ImageError, a_path, several, shown, whole
from ..model.recipe import USUAL, Recipe, checked
from ..model.shapes import side
from ..storage.regular import read_regular
from .dataset import PictureSet
from .folders import pictures_below
from .labels import PICTURES


def images_in(
    folder: str | os.PathLike[str], size: int, limit: int, batch: int = 8, *, recipe: Recipe = USUAL
) -> Pictures:
    """The pictures below a folder, `limit` of them, taken evenly from all by name so that subfolders have their share.

    recipe: of the model, `model.recipe`, for its mean and std; default: ImageNet's

    Warns of what is left out. Raises ArgumentError when there is none, and for numbers below 1; DatasetError when a
    folder cannot be read.
    """
    size, limit, batch = side("size", size), whole("limit", limit), whole("batch", batch)
    folder = a_path("the folder", folder)
    if not folder.is_dir():
        raise ArgumentError(f"there is no folder {folder} of pictures for calibration")
    paths = [Path(picture.file) for picture in pictures_below(folder)]
    if not paths:
        raise ArgumentError(f"{folder} has no pictures for calibration ({', '.join(sorted(PICTURES))})")
    count = min(limit, len(paths))
    return Pictures([paths[index * len(paths) // count] for index in range(count)], size, batch, recipe)


class Batches(Sequence[Tensor]):
    """Batches of images that are read whenever one is asked for."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Batch `index`, 0 ... len - 1."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Tells these images, in these batches, from any others."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        chosen = range(len(self))[index]
        return self.read(chosen) if isinstance(chosen, int) else list(map(self.read, chosen))


class Pictures(Batches):
    """Picture files as batches (B, 3, size, size) of the published preprocessing, read whenever one is asked for.

    Reading one raises ImageError for a picture that cannot be used.
    """

    def __init__(self, paths: Sequence[Path], size: int, batch: int = 8, recipe: Recipe = USUAL) -> None:
        self.paths = tuple(a_path("a picture", path) for path in several("paths", paths))
        self.size, self.batch, self.recipe = side("size", size), whole("batch", batch), checked(recipe)

    def __len__(self) -> int:
        return math.ceil(len(self.paths) / self.batch)

    def read(self, index: int) -> Tensor:
        from ..preprocessing.cpu import load_batch

        return load_batch(self.paths[index * self.batch : (index + 1) * self.batch], self.size, recipe=self.recipe)

    @cached_property
    def identity(self) -> str:
        """A digest of the files' contents, in order, and of how they are read. Raises ImageError as `read` does."""
        digest = hashlib.sha256(f"{self.size} {self.batch} {self.recipe.normalization}".encode())
        for path in self.paths:
            digest.update(_file_digest(str(path), partial(read_regular, path)))
        return digest.hexdigest()


class DatasetBatches(Batches):
    """The pictures of a data set, or of a set without labels, as batches (B, 3, size, size) of the published
    preprocessing.

    Reading one raises ImageError for a picture that cannot be used.
    """

    def __init__(self, dataset: PictureSet, size: int, batch: int = 8, recipe: Recipe = USUAL) -> None:
        if not isinstance(dataset, PictureSet):
            raise ArgumentTypeError(f"the data must be what open_dataset returns, got {shown(repr(dataset))}")
        self.dataset, self.recipe = dataset, checked(recipe)
        self.size, self.batch = side("size", size), whole("batch", batch)

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch)

    def read(self, index: int) -> Tensor:
        chosen = range(len(self.dataset))[index * self.batch : (index + 1) * self.batch]
        return torch.stack([self.dataset.input(position, self.size, recipe=self.recipe) for position in chosen])

    @cached_property
    def identity(self) -> str:
        """A digest of the pictures' files, in order, and of how they are read. Raises ImageError as `read` does."""
        digest = hashlib.sha256(f"{self.size} {self.batch} {self.recipe.normalization}".encode())
        for position, picture in enumerate(self.dataset.pictures):
            digest.update(_file_digest(picture.name, partial(self.dataset.read, position)))
        return digest.hexdigest()


def _file_digest(name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return hashlib.sha256(read()).digest()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); get the file again") from error
