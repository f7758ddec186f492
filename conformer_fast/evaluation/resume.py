"""What models predicted for each picture of a data set, kept in a file, so that an evaluation can be continued."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..storage.outputs import write_output

TODO, DONE, DAMAGED = range(3)


class Record:
    """The best classes of each picture by every model and head, best first, and which pictures are damaged.

    top:    int32 (pictures, models, heads, K), -1 where nothing is known yet
    states: uint8 (pictures,): TODO, DONE or DAMAGED
    errors: picture -> what is wrong with it
    fields: what is evaluated and how, as JSON values; a file of other fields is refused
    """

    def __init__(self, pictures: int, models: int, heads: int, best: int, fields: Mapping[str, Any]) -> None:
        self.top = np.full((pictures, models, heads, best), -1, np.int32)
        self.states = np.full(pictures, TODO, np.uint8)
        self.errors: dict[int, str] = {}
        self.fields = dict(fields)

    @property
    def known(self) -> int:
        """How many pictures need nothing more."""
        return int((self.states != TODO).sum())

    def add(self, pictures: Sequence[int], top: np.ndarray) -> None:
        """The predictions (len(pictures), models, heads, K) for some pictures."""
        self.top[list(pictures)] = top
        self.states[list(pictures)] = DONE

    def add_damaged(self, errors: Mapping[int, str]) -> None:
        self.errors |= errors
        self.states[list(errors)] = DAMAGED

    def retry_damaged(self) -> None:
        self.states[self.states == DAMAGED] = TODO
        self.errors.clear()

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes all of it at once. Raises what `write_output` raises."""
        header = json.dumps({"fields": self.fields, "errors": self.errors})
        content = BytesIO()
        np.savez(content, header=np.array(header), top=self.top, states=self.states)
        write_output(file, content.getvalue())

    def load(self, file: str | os.PathLike[str]) -> None:
        """Takes over what `save` wrote. Raises DatasetError when it is damaged or of another evaluation."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                top, states = stored["top"], stored["states"]
            fields = dict(header["fields"])
            errors = {int(picture): str(error) for picture, error in header["errors"].items()}
            if not set(errors) <= set(range(len(states))) or not np.isin(states, (TODO, DONE, DAMAGED)).all():
                raise ValueError("a picture that there is not, or an unknown state")
        except (
            *(ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise DatasetError(f"{file} holds no evaluation ({error}); name another file, or delete it") from error
        for name in self.fields | fields:
            if fields.get(name) != self.fields.get(name):
                raise DatasetError(
                    f"{file} is of another evaluation: {name} was {fields.get(name)!r} and is "
                    f"{self.fields.get(name)!r}; name another file, or delete it"
                )
        if (top.shape, top.dtype, states.shape, states.dtype) != (
            self.top.shape,
            self.top.dtype,
            self.states.shape,
            self.states.dtype,
        ):
            raise DatasetError(f"{file} holds no evaluation of {len(self.states)} pictures; delete it")
        self.top, self.states, self.errors = top, states, errors
