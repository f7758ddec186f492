"""From images to detections: what stands between a detector's networks, and is the same whoever runs those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...errors import ArgumentError
from .boxes import BOX_STDS, REGION_STDS, anchors_at, moved
from .config import BOX_SIDE, MASK_SIDE, RATIOS, DetectorConfig
from .masks import pasted
from .operators import nms, read_regions
from .parts import Proposed

REGION_OVERLAP, BOX_OVERLAP = 0.7, 0.5  # above which the worse of two is removed


class ImageSize(NamedTuple):
    """Of a picture in an image: its own pixels there, without padding; and of the original, which results are for."""

    height: int
    width: int
    original_height: int
    original_width: int


class Detections(NamedTuple):
    """What was found in one picture, the surest first.

    boxes:  (N, 4), x1 y1 x2 y2 in pixels of the original picture
    scores: (N,), probabilities
    labels: (N,), class numbers
    masks:  (N, height, width) of the original picture, True on the object; None without a mask head
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


def on_cpu(found: Detections) -> Detections:
    """The same in the CPU's memory."""
    boxes, scores, labels, masks = found
    return Detections(boxes.cpu(), scores.cpu(), labels.cpu(), None if masks is None else masks.cpu())


class Operators(NamedTuple):
    """What is computed between the networks, as those of operators.py do it."""

    nms: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    read_regions: Callable[[Sequence[Tensor], Tensor, Sequence[int], int], Tensor]


class Networks(Protocol):
    """What computes, each as the class in parts.py that has its result, and the operators between them."""

    @property
    def operators(self) -> Operators: ...

    def propose(self, images: Tensor) -> Proposed:
        """Proposer: (B, 3, H, W) -> maps and regions."""

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """BoxHead: (R, K, 7, 7) -> logits (R, classes + 1), deltas (R, classes * 4)."""

    def masks(self, features: Tensor) -> Tensor:
        """MaskHead: (R, K, 14, 14) -> logits (R, classes, 28, 28)."""


def detect(networks: Networks, config: DetectorConfig, images: Tensor, sizes: Sequence[ImageSize]) -> list[Detections]:
    """images (B, 3, H, W), H and W multiples of 32, and the sizes of the pictures in them -> one result each.

    Raises ArgumentError where a network returns NaN or infinite values.
    """
    proposed = networks.propose(images)
    found = []
    for index, size in enumerate(sizes):
        _check_finite([values[index] for values in proposed.regions], "proposals")
        maps = [feature_map[index] for feature_map in proposed.maps]
        regions, _ = regions_of([values[index] for values in proposed.regions], size, config, networks.operators.nms)
        boxes, scores, labels = _boxes(networks, config, maps, regions, size)
        masks = _masks(networks, config, maps, boxes, labels, size) if config.masks else None
        found.append(Detections(_in_original(boxes, size), scores, labels, masks))
    return found


def regions_of(
    proposed: Sequence[Tensor],
    size: ImageSize,
    config: DetectorConfig,
    nms: Callable[[Tensor, Tensor, Tensor, float], Tensor] = nms,
) -> tuple[Tensor, Tensor]:
    """Where objects may be: boxes (R, 4) in pixels of the image, and their scores (R,), the best first.

    proposed: of each map (3 + 12, H, W), see parts.Proposed
    """
    boxes, scores, levels = [], [], []
    for level, (values, stride) in enumerate(zip(proposed, config.strides, strict=True)):
        width = values.shape[2]
        values = values.permute(1, 2, 0)  # by pixel
        likely, deltas = values[..., : len(RATIOS)].reshape(-1).sigmoid(), values[..., len(RATIOS) :].reshape(-1, 4)
        chosen = _best(likely, config.proposals)
        placed = anchors_at(chosen, width, stride, like=values)
        boxes.append(moved(placed, deltas[chosen], REGION_STDS, size.height, size.width))
        scores.append(likely[chosen])
        levels.append(torch.full_like(chosen, level))
    every, likely, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    solid = (every[:, 2:] > every[:, :2]).all(1)
    every, likely, level_of = every[solid], likely[solid], level_of[solid]
    kept = nms(every, likely, level_of, REGION_OVERLAP)[: config.proposals]
    return every[kept], likely[kept]


def _best(scores: Tensor, count: int) -> Tensor:
    """The places of so many of the best, as far as there are, in falling order; of equal ones the first come first."""
    places = torch.arange(len(scores), device=scores.device)
    if len(scores) > count:  # sorting all of them would take ten times as long
        places = places[scores >= scores.topk(count).values[-1]]
    return places[scores[places].argsort(descending=True, stable=True)[:count]]


PYTORCH = Operators(nms, read_regions)


def _boxes(
    networks: Networks, config: DetectorConfig, maps: Sequence[Tensor], regions: Tensor, size: ImageSize
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) in pixels of the image, scores (N,) and labels (N,)."""
    logits, deltas = networks.boxes(networks.operators.read_regions(maps, regions, config.strides, BOX_SIDE))
    _check_finite([logits], "scores")
    _check_finite([deltas], "boxes")
    probabilities = logits.softmax(-1)[:, :-1]  # without the background's
    region, label = (probabilities > config.min_score).nonzero(as_tuple=True)
    deltas = deltas.view(len(deltas), config.num_classes, 4)[region, label]
    boxes = moved(regions[region], deltas, BOX_STDS, size.height, size.width)
    scores = probabilities[region, label]
    kept = networks.operators.nms(boxes, scores, label, BOX_OVERLAP)[: config.detections]
    return boxes[kept], scores[kept], label[kept]


def _masks(
    networks: Networks, config: DetectorConfig, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor, size: ImageSize
) -> Tensor:
    """(N, height, width) of the original picture."""
    logits = networks.masks(networks.operators.read_regions(maps, boxes, config.strides, MASK_SIDE))
    own = logits[torch.arange(len(labels), device=labels.device), labels]  # of each detection's class
    _check_finite([own], "masks")
    return pasted(own.sigmoid(), _in_original(boxes, size), size.original_height, size.original_width)


def _check_finite(found: Sequence[Tensor], what: str) -> None:
    if not all(values.isfinite().all() for values in found):
        raise ArgumentError(
            f"the detector's {what} are NaN or infinite, beyond the precision's range; use bf16 or fp32, or check the "
            f"weights and that the images are normalized"
        )


def _in_original(boxes: Tensor, size: ImageSize) -> Tensor:
    across, down = size.width / size.original_width, size.height / size.original_height
    return boxes / boxes.new_tensor([across, down, across, down])
