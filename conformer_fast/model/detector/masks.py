"""Masks of boxes put into the whole picture."""

from __future__ import annotations

import math
import mmap

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError

THRESHOLD = 0.5


def pasted(shares: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Where bilinear samples of each box's mask are at least THRESHOLD. Outside of a mask is zero.

    A box without width or height has none, where mmdetection draws a strip.

    shares (N, h, w), boxes (N, 4) in pixels of the picture -> (N, height, width), bool
    """
    out = _nothing((len(boxes), height, width), boxes.device)
    for index, (share, box) in enumerate(zip(shares, boxes, strict=True)):
        x1, y1, x2, y2 = box.tolist()
        if x2 <= x1 or y2 <= y1:
            continue
        left, right = max(math.floor(x1) - 1, 0), min(math.ceil(x2) + 1, width)
        top, bottom = max(math.floor(y1) - 1, 0), min(math.ceil(y2) + 1, height)
        x = (torch.arange(left, right, dtype=box.dtype, device=box.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, dtype=box.dtype, device=box.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
        sampled = F.grid_sample(share[None, None].to(box.dtype), grid[None], align_corners=False)
        out[index, top:bottom, left:right] = sampled[0, 0] >= THRESHOLD
    return out


def run_lengths(mask: Tensor) -> dict[str, list[int]]:
    """(height, width), bool -> COCO's uncompressed form: lengths of runs, of zeros first, down the columns."""
    values = mask.numpy().T.ravel()
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    counts = np.diff([0, *changes, len(values)]).tolist()
    return {"size": [*mask.shape], "counts": [0, *counts] if len(values) and values[0] else counts}


def _nothing(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """False everywhere. In the CPU's memory these are pages that the system makes when they are first written: 100
    masks of a photograph are a hundred MB, of which boxes cover a part. NumPy's zeros are such too, but in huge pages,
    which the system may take long to find."""
    size = math.prod(shape)
    if device.type != "cpu" or not size or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=torch.bool, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ArgumentError(
            f"{shape[0]} masks of a picture of {shape[1]}x{shape[2]} take {size:,} bytes, which are not there; give a "
            f"smaller picture"
        ) from error
    return torch.frombuffer(memory, dtype=torch.bool).view(shape)
