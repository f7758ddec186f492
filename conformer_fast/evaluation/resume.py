"""What models predicted for each picture of a data set, kept in a file, so that an evaluation can be continued.

And what must be the same when any work on pictures is continued.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..engines.module import EngineModule
from ..errors import DatasetError, shown
from ..storage.outputs import write_output
from ..storage.regular import read_regular
from ..version import __version__

MAGIC = b"conformer-fast evaluation "
MOST_BYTES = 1 << 30  # of a file; ImageNet's 50,000 pictures take 6 MB
MOST_SHOWN = 20  # of the fields that differ
TODO, DONE, DAMAGED = range(3)
HASHED = {  # fields that are hashes, which tell nobody anything: what it means that they differ
    "data": "of other pictures or labels",
    "annotations": "of another annotation file",
    "source": "of other pictures",
    "labels": "of other names of the classes",
    "weights": "of other weights",
    "quantization": "of another quantization",
    "bundle": "of another bundle",
}


def fields_of(fast: EngineModule, pictures: int, size: int, batch: int) -> dict[str, Any]:
    """What decides every score of so many pictures beside what they are, as JSON values. size: side of the input in
    pixels; batch: pictures run together"""
    return {
        "pictures": pictures,
        "conformer_fast": __version__,
        **fast.identity,
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "gpu": torch.cuda.get_device_name(fast.device) if fast.device.type == "cuda" else None,
        "pad": fast.pad,
        "size": size,
        "normalization": [list(values) for values in fast.recipe.normalization],
        "batch": batch,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which fields two runs differ, in words; nothing if they are the same."""
    others = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return ", ".join(_difference(name, before.get(name), now) for name in others[:MOST_SHOWN])


def _difference(name: str, before: Any, now: Mapping[str, Any]) -> str:
    if name in HASHED:
        return HASHED[name]
    known = name if name in now else shown(repr(name))
    return f"{known} was {shown(repr(before), 100)} and is {shown(repr(now.get(name)), 100)}"


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
        """Writes all of it at once: what it is and a sha256 of the rest; fields and errors as JSON; the arrays. Raises
        what `write_output` raises."""
        header = json.dumps({"fields": self.fields, "errors": self.errors}).encode()
        content = b"".join([header, b"\n", self.top.tobytes(), self.states.tobytes()])
        write_output(file, MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def load(self, file: str | os.PathLike[str]) -> None:
        """Takes over what `save` wrote. Raises DatasetError when it is damaged or of another evaluation."""
        try:
            first, _, content = read_regular(file, MOST_BYTES).partition(b"\n")
            if first != MAGIC + hashlib.sha256(content).hexdigest().encode():
                raise ValueError("it is damaged, or was written by another program")
            head, _, arrays = content.partition(b"\n")
            header = json.loads(head)
            fields = dict(header["fields"])
            errors = {int(picture): str(error) for picture, error in header["errors"].items()}
        except OSError as error:
            raise DatasetError(f"{file} cannot be read ({error.strerror}); name another file") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{file} holds no evaluation ({shown(error)}); name another file, or delete it"
            ) from error
        if others := differences(fields, self.fields):
            raise DatasetError(f"{file} is of another evaluation: {others}; name another file, or delete it")
        if len(arrays) != self.top.nbytes + self.states.nbytes:
            raise DatasetError(f"{file} holds no evaluation of {len(self.states)} pictures; delete it")
        top = np.frombuffer(arrays, self.top.dtype, self.top.size).reshape(self.top.shape).copy()
        states = np.frombuffer(arrays, self.states.dtype, offset=self.top.nbytes).copy()
        if set(errors) != set(np.flatnonzero(states == DAMAGED).tolist()) or (states > DAMAGED).any():
            raise DatasetError(f"{file} holds no evaluation (unknown states); name another file, or delete it")
        self.top, self.states, self.errors = top, states, errors
