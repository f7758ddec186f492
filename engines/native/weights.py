"""A product's weights as csrc/int8.h reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .graph import Node

BLOCK, DEPTH, GROUP, LINE = 32, 64, 4, 64  # as in csrc/int8.h; LINE is in bytes
PICTURE_CHANNELS = 4


class Packed(NamedTuple):
    """weights: int8 or float32 panels, see csrc/int8.h. sums: of each column's. scales: of a sum, but for the scale of
    what it reads. These and bias go on to a multiple of BLOCK."""

    weights: np.ndarray
    sums: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    columns: int
    taps: int
    depth: int


def packed(node: Node, tensors: Mapping[str, Tensor], prefix: str = "") -> Packed:
    """Of the weight (K, C), or (K, C, S, S), where a line of a window is a tap. prefix: of its arguments' names"""
    given: Any = node.arguments
    weight, bias = (tensors[given[prefix + name].name] for name in ("weight", "bias"))
    rows = weight[:, None] if weight.ndim == 2 else weight.permute(0, 2, 3, 1)  # (K, taps, ..., C)
    if node.operation == "stem":
        rows = torch.nn.functional.pad(rows, (0, PICTURE_CHANNELS - rows.shape[-1]))
    values = rows.reshape(*rows.shape[:2], -1).numpy()
    columns, taps, depth = values.shape
    if weight.dtype == torch.int8:
        panels, scales = _panels(values), tensors[given["weight_scale"].name].numpy()
        sums = values.sum((1, 2), dtype=np.int32)
    else:
        panels, scales = _float_panels(values), np.ones(columns, np.float32)
        sums = np.zeros(columns, np.int32)
    return Packed(panels, _padded(sums), _padded(scales), _padded(bias.numpy()), columns, taps, depth)


def _panels(values: np.ndarray) -> np.ndarray:
    """int8 (columns, taps, depth) -> for each BLOCK columns, tap and DEPTH numbers: two halves of the columns, for each
    GROUP numbers, for each column: GROUP numbers."""
    columns, taps, depth = values.shape
    whole = np.zeros((-(-columns // BLOCK) * BLOCK, taps, -(-depth // DEPTH) * DEPTH), np.int8)
    whole[:columns, :, :depth] = values
    groups = whole.view(np.int32).reshape(-1, 2, BLOCK // 2, taps, whole.shape[2] // DEPTH, DEPTH // GROUP)
    return _aligned(groups.transpose(0, 3, 4, 1, 5, 2)).view(np.int8)


def _float_panels(values: np.ndarray) -> np.ndarray:
    """float32 (columns, taps, depth) -> for each BLOCK columns, tap and value: BLOCK values."""
    columns, taps, depth = values.shape
    whole = np.zeros((-(-columns // BLOCK) * BLOCK, taps, depth), np.float32)
    whole[:columns] = values
    return _aligned(whole.reshape(-1, BLOCK, taps, depth).transpose(0, 2, 3, 1))


def _aligned(values: np.ndarray) -> np.ndarray:
    """A contiguous copy that begins at a line of the cache."""
    memory = np.empty(values.nbytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _padded(values: np.ndarray) -> np.ndarray:
    """With zeros to a multiple of BLOCK."""
    return np.pad(values, (0, -len(values) % BLOCK))
