"""Steps of csrc/int8.h, each in a program of its own, beside what it makes in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from conformer_fast import _C
from conformer_fast.engines.native.program import Numbers

PORTABLE = "portable"  # what all instruction sets must equal
POISON = 0xCD  # every byte that holds nothing
LINE = 64  # bytes
SPARE = 32 * 1024  # bytes of poison behind whatever lies in memory
TIE = 1e-3  # how much nearer another number may be, in numbers
PRECISION = 2e-6  # of float32, relative to the largest value
SIGNED, UNSIGNED = Numbers(3 / 127, 128), Numbers(3 / 255, 0)  # for values around 1, of which a few are beyond


class Made(NamedTuple):
    """What a step writes at an offset: float64, NaN where it writes nothing. numbers: None of float32"""

    offset: int
    exact: np.ndarray
    numbers: Numbers | None
    error: np.ndarray | float  # of exact


class Step:
    """One step, the memory that it is given, poisoned where it is given nothing, and what it makes of it."""

    def __init__(self, name: str, pictures: np.ndarray | None = None, **fields: Any) -> None:
        self.name, self.fields = name, fields
        self.pictures = np.zeros((1, 1, 1, 1), np.float32) if pictures is None else pictures
        self.places: dict[str, int] = {}  # how many bytes of memory each such field has
        self.made: list[Made] = []
        self._parts: list[np.ndarray] = []

    def put(self, name: str, values: np.ndarray) -> None:
        """Into memory, for the field `name`."""
        self._room(name, values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def makes(self, name: str, exact: np.ndarray, numbers: Numbers | None, error: np.ndarray | float = 0.0) -> None:
        """Into the place of the field `name`. error: of `exact`, but for float32's"""
        self._room(name, exact.size * (4 if numbers is None else 1))
        error = error + PRECISION * np.nanmax(np.abs(exact)) if numbers is None else error
        self.made.append(Made(self.fields[name], exact, numbers, error))

    def _room(self, name: str, size: int) -> np.ndarray:
        """So many bytes of memory, which `name` gets."""
        self.fields[name], self.places[name] = sum(part.size for part in self._parts), size
        self._parts.append(np.full(-(-size // LINE) * LINE + SPARE, POISON, np.uint8))
        return self._parts[-1][:size]

    @property
    def before(self) -> np.ndarray:
        return np.concatenate(self._parts)


def program_of(step: Step, instructions: str, with_step: bool = True) -> _C.Int8Program:
    """Which fills its memory, runs the step and returns the memory."""
    memory, images = step.before, len(step.pictures)
    program = _C.Int8Program(instructions, memory.size, images)
    if step.name != "picture":  # which every program must read
        program.picture(out=0, channels=1, height=1, width=1, padded_width=7, numbers=SIGNED)
    program.copy(**{"from": memory}, out=0, bytes=memory.size, count=1, step=1, images=1, image_step=1, behind=0)
    if with_step:
        getattr(program, step.name)(**step.fields)
    program.result(0, memory.size // 4 // images)
    return program


def run(program: _C.Int8Program, step: Step, threads: int = 1) -> np.ndarray:
    """Its memory behind the last step, (bytes,) uint8."""
    images = len(step.pictures)
    out = np.empty((images, step.before.size // 4 // images), np.float32)
    _C.int8_run([program], step.pictures, [out], threads)
    return out.reshape(-1).view(np.uint8)


def check(step: Step, instructions: str) -> None:
    """That memory holds what the step makes, and nothing else is changed."""
    found = run(program_of(step, instructions), step)
    right = step.before
    for offset, exact, numbers, error in step.made:
        kind, bits = (np.float32, np.uint32) if numbers is None else (np.uint8, np.uint8)
        place = slice(offset, offset + exact.size * np.dtype(kind).itemsize)
        values, nothing = found[place].view(kind).reshape(exact.shape), np.isnan(exact)
        left = values.view(bits)[nothing]
        np.testing.assert_array_equal(left, np.full(left.size * left.itemsize, POISON, np.uint8).view(bits))
        if numbers is not None:
            exact = np.clip(exact / np.float32(numbers.scale) + numbers.zero, 0, 255)
            error = error / numbers.scale + 0.5 + TIE
        beyond = np.where(nothing, 0, np.abs(values - exact) - error)
        worst = np.unravel_index(beyond.argmax(), beyond.shape)
        assert beyond[worst] <= 0, f"{step.name} at {worst}: {values[worst]}, not {exact[worst]}"
        right[place] = found[place]
    np.testing.assert_array_equal(found, right)
