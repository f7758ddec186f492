"""Pictures decoded, as many as are asked for at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch

from ..datasets.dataset import PictureSet
from ..errors import ImageError
from ..extension import NOTE
from ..preprocessing.pillow_warnings import ignore_damaged_metadata


class Decoded(NamedTuple):
    """pictures: indices of those that could be decoded; images: their pixels, uint8 (len(pictures), 3, size, size), or
    None; errors: what is wrong with the others."""

    pictures: list[int]
    images: np.ndarray | None
    errors: dict[int, str]


def decode(dataset: PictureSet, size: int, group: Sequence[int]) -> Decoded:
    images: dict[int, np.ndarray] = {}
    errors: dict[int, str] = {}
    for index in group:
        try:
            images[index] = dataset.input(index, size, torch.uint8).numpy()
        except ImageError as error:
            errors[index] = str(error)
    return Decoded(list(images), np.stack(list(images.values())) if images else None, errors)


def serve(pipe: Connection) -> None:
    """What a process does, until the pipe's other end is closed."""
    torch.set_num_threads(1)
    ignore_damaged_metadata()
    warnings.filterwarnings("ignore", NOTE)  # its parent has said so
    with suppress(EOFError, OSError), pipe:
        dataset, size = pipe.recv()
        while True:
            pipe.send(decode(dataset, size, pipe.recv()))
