"""What is written of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..deploy.fast_conformer import FastConformer
from ..deploy.predict import Guess, summed, top_classes
from ..errors import shown
from ..evaluation.decode import Decoded

MOST_LETTERS = 1000  # of an error


class Row(NamedTuple):
    """The likeliest classes of a picture by both heads together, best first.

    picture:       its name in the source
    classes:       their numbers; none of a damaged picture
    labels:        their names
    probabilities: from 0 to 1
    error:         what is wrong with a damaged picture; None of any other
    """

    picture: str
    classes: list[int]
    labels: list[str]
    probabilities: list[float]
    error: str | None


def rows_of(model: FastConformer, found: Decoded, group: Sequence[int], names: Sequence[str], topk: int) -> list[Row]:
    """Of a group of pictures that were decoded together, by one call of the model. names: of all pictures."""
    tops = {}
    if found.images is not None:
        scores = summed(model, model.run(torch.from_numpy(found.images).to(model.device)))
        tops = dict(zip(found.pictures, top_classes(scores, model.labels, topk), strict=True))
    rows = []
    for index in group:
        rows.append(row_of(names[index], tops.get(index, ()), found.errors.get(index)))
    return rows


def row_of(name: str, top: Sequence[Guess] = (), error: str | None = None) -> Row:
    """Of a picture: its likeliest classes, or what is wrong with it."""
    return Row(
        as_text(name),
        [guess.index for guess in top],
        [guess.label for guess in top],
        [guess.probability for guess in top],
        None if error is None else shown(error, MOST_LETTERS),
    )


def row_from(value: Any) -> Row:
    """The row whose JSON value this is. Raises ValueError if it is none."""
    match value:
        case [str(), list(classes), list(labels), list(probabilities), None | str()] if (
            all(type(index) is int and 0 <= index < 2**31 for index in classes)
            and all(isinstance(label, str) for label in labels)
            and all(type(probability) is float for probability in probabilities)
            and len(classes) == len(labels) == len(probabilities)
        ):
            return Row(*value)
    raise ValueError("no row")


def as_text(name: str) -> str:
    """A picture's name as it is written: bytes of a file's name that are no UTF-8 as "\\udcff"."""
    return name.encode("utf-8", "backslashreplace").decode()
