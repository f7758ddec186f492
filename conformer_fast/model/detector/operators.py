"""Non-maximum suppression and RoIAlign. On the CPU in float32 the extension of csrc/ computes them, elsewhere
torchvision where it is installed; else the same in plain PyTorch, which is what these are checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ...extension import unusable, warn_without
from .boxes import areas, overlaps

if not unusable():
    from ... import _C
else:
    _C = None  # type: ignore[assignment]

FINEST = 56  # pixels of a region's side: up to twice that it is read from the finest map
LAST_LEVEL = 3  # of the maps that regions are read from
Torchvision = tuple[Callable[..., Tensor], Callable[..., Tensor]]


@cache
def torchvision_ops() -> Torchvision | None:
    """torchvision's (nms, roi_align); None where it cannot be imported."""
    try:
        from torchvision.ops import nms, roi_align
    except (ImportError, RuntimeError):  # the latter where it was built for another PyTorch
        return None
    return nms, roi_align


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The indices of the boxes that are kept, by falling score: from the best on, each one removes those of its group
    that overlap it by more than `threshold`. In float32, as mmcv's; that moves groups apart in it, and so rounds.

    boxes (N, 4), scores (N,), groups (N,), whole numbers -> (M,)
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    order = scores.argsort(descending=True, stable=True)
    if _by_extension(boxes):
        ordered = boxes[order].contiguous().numpy(), groups[order].long().numpy()
        return order[torch.from_numpy(_C.best(*ordered, threshold))]
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in groups.unique():
        members = order[groups[order] == group]
        kept[members[_best(boxes[members], scores[members], threshold)]] = True
    return order[kept[order]]


def read_regions(maps: Sequence[Tensor], regions: Tensor, strides: Sequence[int], side: int) -> Tensor:
    """`roi_align` of each region from that of the finer four maps whose pixels are of a size with it.

    maps (K, H, W) each, of the finest first, regions (R, 4) in pixels of the image -> (R, K, side, side)
    """
    level = (areas(regions).sqrt() / FINEST + 1e-6).log2().floor().clamp(0, LAST_LEVEL)
    if all(map(_by_extension, maps)):
        some = level.nan_to_num(0)  # what is inside out has no level, and no samples on any
        return _aligned(maps[: LAST_LEVEL + 1], some, regions, strides, side)
    shape = len(regions), maps[0].shape[0], side, side
    out = maps[0].new_zeros(shape).contiguous(memory_format=torch.channels_last)
    for index, stride in enumerate(strides[: LAST_LEVEL + 1]):
        members = (level == index).nonzero()[:, 0]
        if len(members):
            out[members] = roi_align(maps[index], regions[members], stride, side)
    return out


def roi_align(feature_map: Tensor, regions: Tensor, stride: int, side: int) -> Tensor:
    """The mean of bilinear samples in each of side x side cells of each region.

    A cell has ceil(region's extent / side) samples along each axis, at even distances. Pixels' centers are at half
    pixels. A sample more than a pixel outside the map counts as zero.

    feature_map (K, H, W), regions (R, 4) in pixels of the image -> (R, K, side, side)
    """
    if _by_extension(feature_map):
        return _aligned([feature_map], torch.zeros(len(regions)), regions, [stride], side)
    found = torchvision_ops()
    if found:
        return found[1](feature_map[None], [regions], side, 1 / stride, 0, aligned=True)
    return _plain_roi_align(feature_map, regions / stride - 0.5, side)


def _by_extension(tensor: Tensor) -> bool:
    """Whether the extension takes it: it knows no gradients."""
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or tracked:
        return False
    if _C is None:
        warn_without()
    return _C is not None


def _aligned(maps: Sequence[Tensor], level: Tensor, regions: Tensor, strides: Sequence[int], side: int) -> Tensor:
    """By the extension. level: (R,), the map that each region is read from."""
    level = level.long()
    out = maps[0].new_empty(len(regions), side, side, len(maps[0]))
    pixels = [each.permute(1, 2, 0).contiguous().numpy() for each in maps]  # as they are where channels come last
    scaled = (regions / regions.new_tensor(strides)[level, None] - 0.5).contiguous()
    _C.roi_align(pixels, level.numpy(), scaled.numpy(), out.numpy(), torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


def _best(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which boxes of one group, ordered by falling score, are kept: indices, or a mask."""
    found = torchvision_ops()
    return found[0](boxes, scores, threshold) if found else _plain_best(boxes, threshold)


def _plain_best(boxes: Tensor, threshold: float) -> Tensor:
    removes = (overlaps(boxes, boxes) > threshold).triu(1)
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:  # each round settles at least one box more
        still = ~(removes & kept[:, None]).any(0)
        if torch.equal(still, kept):
            return kept
        kept = still


def _plain_roi_align(feature_map: Tensor, scaled: Tensor, side: int) -> Tensor:
    """scaled: (R, 4), in pixels of the map."""
    K, H, W = feature_map.shape
    if not len(scaled):
        return feature_map.new_zeros(0, K, side, side)
    rows = _weights(scaled[:, 1], scaled[:, 3], side, H)
    columns = _weights(scaled[:, 0], scaled[:, 2], side, W)
    out = []
    for row, column, (top, bottom), (left, right) in zip(rows, columns, _extents(rows), _extents(columns), strict=True):
        window = feature_map[:, top:bottom, left:right]  # bilinear weights are products of a row's and a column's
        out.append(row[:, top:bottom] @ window @ column[:, left:right].T)
    return torch.stack(out)


def _weights(start: Tensor, end: Tensor, side: int, size: int) -> Tensor:
    """What each pixel along an axis counts in each cell of each region. (R,), (R,) -> (R, side, size)."""
    extent = (end - start) / side
    count = extent.ceil().clamp(min=0)  # samples of a cell
    sample = torch.arange(int(count.max()), dtype=start.dtype, device=start.device)
    cell = torch.arange(side, dtype=start.dtype, device=start.device)
    place = (
        cell[None, :, None] + ((sample + 0.5) / count.clamp(min=1)[:, None])[:, None]
    )  # in cells; (R, side, samples)
    place = start[:, None, None] + place * extent[:, None, None]
    counts = (sample < count[:, None])[:, None] & (place >= -1) & (place <= size)
    place = place.clamp(0, size - 1)
    low = place.floor()
    share = counts / count.clamp(min=1)[:, None, None]
    weights = start.new_zeros(len(start), side, size)
    weights.scatter_add_(2, low.long(), share * (1 - (place - low)))
    return weights.scatter_add_(2, (low.long() + 1).clamp(max=size - 1), share * (place - low))


def _extents(weights: Tensor) -> list[tuple[int, int]]:
    """From the first to behind the last pixel that counts, of each region. (R, side, size) -> R pairs"""
    counts = weights.any(1).int()  # (R, size)
    first, last = counts.argmax(1), counts.shape[1] - counts.flip(1).argmax(1)
    return [*zip(first.tolist(), last.tolist(), strict=True)]
