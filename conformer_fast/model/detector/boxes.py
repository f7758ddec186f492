"""Boxes: (x1, y1, x2, y2) in pixels. Anchors, and what a network's deltas make of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ANCHOR_SCALE, RATIOS

LARGEST_GROWTH = math.log(1000 / 16)  # of a side, as its logarithm
REGION_STDS = (1.0, 1.0, 1.0, 1.0)  # of the deltas of anchors, (dx, dy, dw, dh)
BOX_STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of regions


def anchors(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """(H * W * 3, 4): of each pixel of a map, in turn, those of the three RATIOS. Their centers are the pixels' upper
    left corners. like: a tensor of their dtype and device
    """
    return anchors_at(torch.arange(height * width * len(RATIOS), device=like.device), width, stride, like)


def anchors_at(places: Tensor, width: int, stride: int, like: Tensor) -> Tensor:
    """Those of a map so wide that have these places in `anchors`. (N,) -> (N, 4)."""
    ratios = torch.tensor(RATIOS, dtype=like.dtype, device=like.device)
    side = stride * ANCHOR_SCALE
    widths, heights = side / ratios.sqrt(), side * ratios.sqrt()
    shapes = torch.stack([-widths, -heights, widths, heights], -1) / 2  # (3, 4)
    pixels = places // len(RATIOS)
    centers = torch.stack([pixels % width, pixels // width], -1).to(like.dtype) * stride  # (N, 2): x, y
    return centers.repeat(1, 2) + shapes[places % len(RATIOS)]


def moved(boxes: Tensor, deltas: Tensor, stds: tuple[float, ...], height: int, width: int) -> Tensor:
    """Boxes moved and scaled by deltas, and cut off at the image's edges. (..., 4), (..., 4) -> (..., 4).

    dx and dy move the center by so many widths and heights, dw and dh are logarithms of the sides' growth.
    """
    deltas = deltas * deltas.new_tensor(stds)
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    center = center + size * deltas[..., :2]
    size = size * deltas[..., 2:].clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp()
    found = torch.cat([center - size / 2, center + size / 2], -1)
    return found.clamp(min=0).minimum(found.new_tensor([width, height, width, height]))


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each with each. (N, 4), (M, 4) -> (N, M)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / (areas(boxes)[:, None] + areas(others)[None] - shared)
