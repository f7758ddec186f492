"""Safetensors files, whole or in shards. Their bytes are read: who maps a file is killed when it is shortened."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError, first_few, shown
from ..storage.regular import open_regular, read_regular
from .saved import damaged

SHARDS = ".safetensors.index.json"
LENGTH = 8  # bytes at the beginning, which say how many the header has


def read_safetensors(file: BufferedReader) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata. Raises CheckpointError unless the tensors fill it, one
    behind the other."""
    file.seek(0)
    content = file.read()
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise damaged(shown(error)) from error
    except KeyError as error:
        raise damaged(f"PyTorch has no dtype {shown(error)}") from error
    header = content[LENGTH : LENGTH + int.from_bytes(content[:LENGTH], "little")]
    return tensors, json.loads(header).get("__metadata__") or {}  # of texts, or it would not have been loaded


def read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all the files that a *.safetensors.index.json names; they lie beside it."""
    places = _places(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = path.with_name(name)
        if not shard.is_file():
            raise CheckpointError(f"names {shown(name)}, which is not beside it; download or copy that too")
        with open_regular(shard) as file:
            tensors |= read_safetensors(file)[0]
    absent = places.keys() - tensors.keys()
    if absent:
        raise CheckpointError(f"its files lack {first_few(sorted(absent))}; download or copy them again")
    return tensors


def shards_beside(path: Path) -> list[Path]:
    """The files that are read with this one, if it is an index."""
    if not path.name.endswith(SHARDS):
        return []
    with suppress(CheckpointError, OSError):
        return [path.with_name(name) for name in set(_places(path).values())]
    return []


def _places(path: Path) -> dict[str, str]:
    """Of each tensor, the name of the file that it is in."""
    try:
        places = json.loads(read_regular(path))["weight_map"]
        sound = all(type(name) is str and Path(name).name == name for name in places.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise damaged("not the index of safetensors files: it has no weight_map of file names")
    return places
