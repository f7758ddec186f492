"""What a detector found in a picture, as it is judged and kept: JSON values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..datasets.coco import uncompressed
from ..errors import BackendError
from ..model.detector.detect import Detections


class Found(NamedTuple):
    """Detections in one picture, the surest first.

    boxes:  x1 y1 x2 y2 of each in pixels; scores: from 0 to 1; labels: class numbers
    size:   [height, width] of the masks
    masks:  COCO's compressed run lengths of each; None without a mask head
    """

    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    size: list[int]
    masks: list[str] | None


NOTHING = Found([], [], [], [0, 0], [])


def found_in(detections: Detections) -> Found:
    """Raises BackendError without pycocotools."""
    boxes, scores, labels, masks = detections
    lengths: list[str] | None = None
    size = [0, 0] if masks is None else [*masks.shape[1:]]
    if masks is not None:
        pixels = np.asfortranarray(masks.cpu().permute(1, 2, 0).numpy().astype(np.uint8))
        lengths = [one["counts"].decode() for one in pycocotools().mask.encode(pixels)] if len(masks) else []
    return Found(boxes.tolist(), scores.tolist(), labels.tolist(), size, lengths)


def found_from(value: Any, classes: int, size: list[int] | None) -> Found:
    """What was kept of a picture. size: [height, width] if it has masks. Raises ValueError for anything else."""
    match value:
        case [list(boxes), list(scores), list(labels), pixels, masks] if (
            all(isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) for box in boxes)
            and all(map(_is_finite, scores))
            and all(type(label) is int and 0 <= label < classes for label in labels)
            and len(boxes) == len(scores) == len(labels)
            and pixels == (size or [0, 0])
            and (_are_masks(masks, len(boxes), size[0] * size[1]) if size else masks is None)
        ):
            return Found(*value)
    raise ValueError("no detections")


def _are_masks(value: Any, count: int, pixels: int) -> bool:
    """Raises ValueError for a text that is no run lengths."""
    texts = isinstance(value, list) and len(value) == count and all(isinstance(mask, str) for mask in value)
    return texts and all(uncompressed(mask, pixels) for mask in value)


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def pycocotools() -> Any:
    """The package, with its modules. Raises BackendError where it is not installed."""
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise BackendError(
            f'COCO\'s precision needs pycocotools ({error}): pip install "conformer-fast[coco]"'
        ) from error
    return pycocotools
