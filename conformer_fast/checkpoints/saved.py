"""A tensor that lies in a file, known by its sizes, and how its values are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..errors import CheckpointError, shown

ByteOrder = Literal["little", "big"]


def damaged(why: str) -> CheckpointError:
    return CheckpointError(f"damaged or not a checkpoint ({why}); download or copy it again")


@dataclass
class Storage:
    """Bytes of a file that tensors are made of. order: of the bytes of one element."""

    dtype: torch.dtype
    position: int = 0
    nbytes: int = 0
    order: ByteOrder = "little"


@dataclass(frozen=True)
class Saved:
    """A tensor in a file. shape, stride and offset: in elements, as Tensor.as_strided takes them."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def claimed(self) -> int:
        """Bytes that it takes when it is read."""
        return prod(self.shape) * self.dtype.itemsize


def read_tensors(file: BufferedReader, saved: Mapping[str, Saved]) -> dict[str, Tensor]:
    """The values, each in memory of its own, read once.

    Raises CheckpointError when together they claim more bytes than the file has, or the file ends before one of them.
    It is read, not mapped: who maps a file is killed when another program shortens it.
    """
    size = os.fstat(file.fileno()).st_size
    for name, one in saved.items():
        _check(name, one, size)
    if sum(one.claimed for one in saved.values()) > size:
        raise CheckpointError("its tensors claim more bytes than the file has; download or copy it again")
    return {name: _read(file, one) for name, one in saved.items()}


def _check(name: str, one: Saved, size: int) -> None:
    numbers = (one.offset, *one.shape, *one.stride)
    if len(one.shape) != len(one.stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise damaged(f"{shown(name)} has the shape {shown(one.shape)} and the strides {shown(one.stride)}")
    end = (one.offset + _span(one)) * one.dtype.itemsize
    if end > one.storage.nbytes or one.storage.position + end > size:
        raise damaged(f"{shown(name)} goes beyond its end")


def _read(file: BufferedReader, one: Saved) -> Tensor:
    span = _span(one)
    values = torch.empty(span * one.dtype.itemsize, dtype=torch.uint8, device="cpu")
    file.seek(one.storage.position + one.offset * one.dtype.itemsize)
    if file.readinto(values.numpy().data) != len(values):
        raise damaged("it became shorter while it was read")
    if one.storage.order != sys.byteorder:
        values.untyped_storage().byteswap(one.dtype)
    tensor = values.view(one.dtype).as_strided(one.shape, one.stride)
    return tensor if span == tensor.numel() else tensor.clone()


def _span(one: Saved) -> int:
    """Elements from its first to its last."""
    if 0 in one.shape:
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(one.shape, one.stride, strict=True))
