"""Every error of ours, and the checks of arguments, which raise them in the same words everywhere.

An error that names a value of the user's is a ValueError too, any other a RuntimeError.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from operator import index
from pathlib import Path
from typing import Any


class ConformerFastError(Exception):
    """What every error of this package derives from."""


class ArgumentError(ConformerFastError, ValueError):
    """An argument that cannot be used: which, its value, and what can."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of another type than what can be used."""


class BackendError(ConformerFastError, RuntimeError):
    """A backend or precision that cannot be had here, with what to install or choose."""


class CheckpointError(ConformerFastError, ValueError):
    """A weights file or state dict that cannot be used, with what is wrong and what to do."""


MOST_OF_A_COMMAND = 400  # characters, that a file gave and a message repeats


def is_of_memory(error: Exception) -> bool:
    """Whether PyTorch had no memory for a tensor, on a GPU or on the CPU."""
    torch = sys.modules.get("torch")  # without it, it is none of PyTorch's
    on_gpu = isinstance(error, torch.OutOfMemoryError) if torch else False
    return on_gpu or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def shown(name: object, most: int = 200) -> str:
    """A name that a file gave, as a message shows it: on one line, cut to `most` characters, what cannot be printed
    escaped."""
    start = str(name)[: most + 1]
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in start)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_few(names: Iterable[object]) -> str:
    """The first five names, as `shown`, and how many there are beyond."""
    names = list(names)
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class DownloadError(ConformerFastError, RuntimeError):
    """Weights that could not be downloaded, with where they are published and where to put them by hand."""


class DatasetError(ConformerFastError, ValueError):
    """Labeled pictures that cannot be used, with which file, what is wrong and what to do."""


class BundleError(ConformerFastError, RuntimeError):
    """A folder that is no bundle, is damaged, or cannot be read or written; the message says which and what to do."""


class EngineMismatchError(BundleError):
    """A sound bundle that does not fit this machine: of `field` it needs `expected`, and here is `found`.

    rebuild: the command that builds it for this machine
    """

    def __init__(self, field: str, expected: str, found: str, rebuild: str) -> None:
        super().__init__(field, expected, found, rebuild)
        self.field, self.expected, self.found, self.rebuild = field, expected, found, rebuild

    def __str__(self) -> str:
        return (
            f"the engine does not fit this machine: {self.field} must be {shown(self.expected)}, here it is "
            f"{shown(self.found)}; build it again here: {shown(self.rebuild, MOST_OF_A_COMMAND)}"
        )


class ImageError(ConformerFastError, ValueError):
    """An image that cannot be used. The message says which file (if it came from one), what is wrong and what to do."""


class EngineError(ConformerFastError, RuntimeError):
    """An engine that could not be built or loaded, with what TensorRT's logger said."""


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int. Raises ArgumentError unless it is a whole number, at least `least`."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        kind = ArgumentTypeError if number is None else ArgumentError
        raise kind(f"{name} must be a whole number, at least {least}, got {shown(repr(value))}")
    return number


def truth(name: str, value: Any) -> bool:
    """`value` itself. Raises ArgumentTypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be True or False, got {shown(repr(value))}")
    return value


def a_function(name: str, value: Any) -> None:
    """Raises ArgumentTypeError for what cannot be called."""
    if not callable(value):
        raise ArgumentTypeError(f"{name} must be a function, such as print, got {shown(repr(value))}")


def path_text(name: str, value: Any) -> str:
    """The text of a path. Raises ArgumentTypeError for what is none."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ArgumentTypeError(f"{name} must be a path, got {shown(repr(value))}")
    return text


def a_path(name: str, value: Any) -> Path:
    """`value` as a Path. Raises ArgumentTypeError for what is none, ArgumentError for one without a name."""
    text = path_text(name, value)
    if not text:  # Path makes the current folder of it
        raise ArgumentError(f"{name} must be a path, got ''; the current folder is '.'")
    return Path(text)


def one_of(kind: str, name: Any, known: Iterable[str]) -> None:
    """Raises ArgumentError, with the names there are, unless `name` is one of them."""
    known = tuple(known)
    if not isinstance(name, str) or name not in known:
        kind_of_error = ArgumentError if isinstance(name, str) else ArgumentTypeError
        raise kind_of_error(f"unknown {kind} {shown(repr(name))}; choose one of {', '.join(known)}")


def several(name: str, values: Any) -> list[Any]:
    """`values` as a list. Raises ArgumentTypeError for a lone name or path, for what has no order, and for what is
    nothing to go through."""
    if isinstance(values, str | os.PathLike):
        raise ArgumentTypeError(f"{name} must be a list, such as {shown(repr([os.fspath(values)]))}")
    if isinstance(values, set | frozenset | Mapping):  # a dict's keys() have an order
        raise ArgumentTypeError(f"{name} must be a list, in an order, got {shown(repr(values))}")
    try:
        items = iter(values)
    except TypeError:  # also of a tensor without dimensions
        items = None
    if items is None or isinstance(values, bytes | bytearray):
        raise ArgumentTypeError(f"{name} must be a list, got {shown(repr(values))}")
    return list(items)
