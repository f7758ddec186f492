"""A product's weights as csrc/int8.h reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .graph import Graph, Node

BLOCK, DEPTH, GROUP, LINE = 32, 64, 4, 64  # as in csrc/int8.h; LINE is in bytes
PICTURE_CHANNELS = 4
WEIGHTS = ("weight", "conv_weight", "trans_weight")  # names of arguments


class Packed(NamedTuple):
    """shape: of the weight, as PyTorch has it. weights: int8 or float32 panels, see csrc/int8.h. sums: of the weights
    of a column. scales: of a sum, but for the scale of what it reads. These and bias are float64, and go on to a
    multiple of BLOCK.
    """

    shape: torch.Size
    weights: np.ndarray
    sums: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    columns: int
    taps: int
    depth: int


def all_packed(graph: Graph) -> dict[tuple[int, str], Packed]:
    """Of every product of a graph, by its node's index and the prefix of its arguments' names. Their panels lie in one
    piece of memory, for which NumPy asks the system for large pages."""
    made = {
        (index, name.removesuffix("weight")): packed(node, graph.tensors, name.removesuffix("weight"))
        for index, node in enumerate(graph.nodes)
        for name in WEIGHTS
        if name in node.arguments
    }
    memory = np.empty(sum(one.weights.nbytes for one in made.values()) + LINE, np.uint8)
    end = -memory.ctypes.data % LINE
    for key, one in made.items():
        start, end = end, end + one.weights.nbytes
        place = memory[start:end].view(one.weights.dtype)
        place[:] = one.weights.reshape(-1)
        made[key] = one._replace(weights=place)
    return made


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
    return Packed(weight.shape, panels, _padded(sums), _padded(scales), _padded(bias.numpy()), columns, taps, depth)


def _panels(values: np.ndarray) -> np.ndarray:
    """int8 (columns, taps, depth) -> for each BLOCK columns, tap and DEPTH numbers: two halves of the columns, for each
    GROUP numbers, for each column: GROUP numbers."""
    columns, taps, depth = values.shape
    whole = np.zeros((-(-columns // BLOCK) * BLOCK, taps, -(-depth // DEPTH) * DEPTH), np.int8)
    whole[:columns, :, :depth] = values
    groups = whole.view(np.int32).reshape(-1, 2, BLOCK // 2, taps, whole.shape[2] // DEPTH, DEPTH // GROUP)
    return np.ascontiguousarray(groups.transpose(0, 3, 4, 1, 5, 2)).view(np.int8)


def _float_panels(values: np.ndarray) -> np.ndarray:
    """float32 (columns, taps, depth) -> for each BLOCK columns, tap and value: BLOCK values."""
    columns, taps, depth = values.shape
    whole = np.zeros((-(-columns // BLOCK) * BLOCK, taps, depth), np.float32)
    whole[:columns] = values
    return np.ascontiguousarray(whole.reshape(-1, BLOCK, taps, depth).transpose(0, 2, 3, 1))


def _padded(values: np.ndarray) -> np.ndarray:
    """In float64, with zeros to a multiple of BLOCK."""
    return np.pad(values.astype(np.float64), (0, -len(values) % BLOCK))
