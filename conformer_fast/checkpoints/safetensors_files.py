"""Safetensors files, whole or in shards. The library maps a file, and who maps it is killed when it is shortened."""

from __future__ import annotations

import json
import os
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, first_few, shown
from .saved import Saved, Storage, damaged, read_tensors

MOST_HEADER = 100_000_000  # bytes, as the format says
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def read_safetensors(file: BufferedReader) -> dict[str, Saved]:
    """The tensors of a safetensors file. Raises CheckpointError unless they fill it, one behind the other."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(MOST_HEADER, size - 8):
        raise damaged("its header is longer than the file")
    try:
        header = dict(json.loads(file.read(length)))
    except (ValueError, TypeError, RecursionError):
        raise damaged("its header is no JSON object") from None
    described = {name: parts for name, parts in header.items() if name != "__metadata__"}
    saved = {name: _saved(name, parts, 8 + length) for name, parts in described.items()}
    ranges = sorted((one.storage.position, one.storage.position + one.storage.nbytes) for one in saved.values())
    borders = [(8 + length, 8 + length), *ranges, (size, size)]
    if any(end != start for (_, end), (start, _) in pairwise(borders)):
        raise damaged("its tensors overlap, or do not fill it")
    return saved


def read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all the files that a *.safetensors.index.json names; they lie beside it."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
        sound = all(type(name) is str and Path(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise damaged("not the index of safetensors files: it has no weight_map of file names")
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = path.with_name(name)
        if not shard.is_file():
            raise CheckpointError(f"names {shown(name)}, which is not beside it; download or copy that too")
        with shard.open("rb") as file:
            tensors |= read_tensors(file, read_safetensors(file))
    absent = places.keys() - tensors.keys()
    if absent:
        raise CheckpointError(f"its files lack {first_few(sorted(absent))}; download or copy them again")
    return tensors


def _saved(name: str, parts: Any, data: int) -> Saved:
    try:
        dtype, shape = DTYPES[parts["dtype"]], tuple(parts["shape"])
        start, end = parts["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (start, end, *shape))
        sound = sound and end - start == prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise damaged(f"{shown(name)} is described as {shown(parts)}")
    stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Saved(Storage(dtype, data + start, end - start), dtype, shape, stride)
