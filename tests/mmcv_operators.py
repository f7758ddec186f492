"""The operators that mmdet needs of mmcv, so that the real mmdet judges our detector where mmcv-lite is installed.

Importing this, before mmdet, stands in for mmcv's compiled extension, which mmcv-lite lacks and which knows float32
alone. They are plain PyTorch of any type, written after mmcv's nms.cpp and roi_align.cpp and without our own operators.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The indices of the boxes that are kept, by falling score. (N, 4), (N,) -> (M,)."""
    assert offset == 0
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while len(order):
        kept.append(order[0])
        best, others = bboxes[order[0]], bboxes[order[1:]]
        sides = torch.minimum(best[2:], others[:, 2:]) - torch.maximum(best[:2], others[:, :2])
        shared = sides.clamp(min=0).prod(1)
        union = (best[2:] - best[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
        order = order[1:][~(shared / union > iou_threshold)]  # two empty boxes: 0 / 0, both kept
    return torch.stack(kept)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Means of bilinear samples of (B, K, H, W) into `output` (R, K, h, w), which is zero before. rois: (R, 5)."""
    assert sampling_ratio == 0
    assert pool_mode == 1
    assert aligned
    for out, roi in zip(output, rois, strict=True):
        x1, y1, x2, y2 = roi[1:] * spatial_scale - 0.5
        y, x = _samples(y1, y2, aligned_height), _samples(x1, x2, aligned_width)  # (h, m), (w, n)
        if y.numel() and x.numel():
            values = _bilinear(input[int(roi[0])], y.flatten(), x.flatten())
            out.copy_(values.unflatten(2, x.shape).unflatten(1, y.shape).mean((2, 4)))


def _samples(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """Where each cell is sampled along an axis. -> (cells, samples)"""
    extent = (end - start) / cells
    count = int(extent.ceil())
    cell, sample = torch.arange(cells, dtype=start.dtype), torch.arange(count, dtype=start.dtype)
    return start + cell[:, None] * extent + (sample + 0.5) * extent / count


def _bilinear(feature_map: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(K, H, W), (m,), (n,) -> (K, m, n)."""
    H, W = feature_map.shape[1:]
    inside = ((y >= -1) & (y <= H))[:, None] & (x >= -1) & (x <= W)
    y, x = y.clamp(0, H - 1), x.clamp(0, W - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=H - 1), (left + 1).clamp(max=W - 1)
    down, across = (y - top)[:, None], x - left
    upper, lower = feature_map[:, top], feature_map[:, bottom]
    upper = upper[..., left] * (1 - across) + upper[..., right] * across
    lower = lower[..., left] * (1 - across) + lower[..., right] * across
    return (upper * (1 - down) + lower * down) * inside


def in_float64(function: Callable) -> Callable:
    """The function as if its source said torch.float64 where it says torch.float32."""
    source = inspect.getsource(function).replace("torch.float32", "torch.float64")
    namespace = dict(function.__globals__)
    exec(source, namespace)
    return namespace[function.__name__]


class _Extension(ModuleType):
    """mmcv asks on import whether each of its operators is here, which is all that the others are for."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):  # such as __file__, which inspect asks of every module
            raise AttributeError(name)

        def operator(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"mmcv_operators.py has no {name}")

        return operator


_extension = _Extension("mmcv._ext")
_extension.nms, _extension.roi_align_forward = nms, roi_align_forward
sys.modules["mmcv._ext"] = _extension
