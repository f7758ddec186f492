"""Average precision as COCO defines it, by pycocotools; and that of one run of a detector by another's detections."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

from ..datasets.coco import CocoPicture
from ..errors import ArgumentError, ArgumentTypeError, several, shown
from ..model.detector.detect import Detections
from .found import Found, found_in, pycocotools

KINDS = {"box": "bbox", "mask": "segm"}  # of precision, and pycocotools' names of them
SURE = 0.3  # score of a detection that is taken as truth


@dataclass(frozen=True)
class Precision:
    """Average precision from 0 to 1, the mean of all classes that have objects; None if there are no such objects.

    ap:       the mean of those at overlaps of 0.5, 0.55, ... 0.95
    ap50:     of detections that overlap an object by half or more; ap75: by 0.75
    ap_small: ap of objects of up to 32 x 32 pixels; ap_medium: up to 96 x 96; ap_large: of larger ones
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None


def average_precision(
    found: Sequence[Detections], truth: Sequence[Detections], min_score: float = SURE
) -> dict[str, Precision]:
    """The precision of boxes ("box") and, if both have them, of masks ("mask"), where what one run of a detector found
    is judged by what another found in the same pictures.

    found, truth: of each picture, in the same order
    min_score:    of the detections that are taken as truth

    Raises ArgumentError for runs over different numbers of pictures, BackendError without pycocotools.
    """
    runs = []
    for name, run in (("found", found), ("truth", truth)):
        runs.append(several(name, run))
        others = [one for one in runs[-1] if not isinstance(one, Detections)]
        if others:
            raise ArgumentTypeError(f"{name} must be Detections, one a picture, got {shown(repr(others[0]))}")
    if len(runs[0]) != len(runs[1]):
        raise ArgumentError(f"found is of {len(runs[0])} pictures, truth of {len(runs[1])}; run both on the same")
    return agreement([*map(found_in, runs[0])], [*map(found_in, runs[1])], min_score)


def agreement(found: Sequence[Found], truth: Sequence[Found], min_score: float = SURE) -> dict[str, Precision]:
    """The same of what was kept."""
    masked = all(one.masks is not None for one in (*found, *truth))
    images = _images([one.size for one in truth])
    return {
        kind: _precision(kind, images, _as_truth(truth, kind, min_score), found)
        for kind in (KINDS if masked else ("box",))
    }


def precision(
    kind: str, pictures: Sequence[CocoPicture], annotations: Sequence[dict[str, Any]], found: Sequence[Found]
) -> Precision:
    """Of what was found in each picture. annotations: as CocoFile has them, with class numbers as categories"""
    return _precision(kind, _images([[one.height, one.width] for one in pictures]), annotations, found)


def _images(sizes: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """sizes: (height, width) of the masks of each"""
    return [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(sizes)]


def _precision(
    kind: str, images: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]], found: Sequence[Found]
) -> Precision:
    if not truth:
        return Precision(None, None, None, None, None, None)
    package = pycocotools()
    with redirect_stdout(StringIO()):  # it reports each step
        judge = package.cocoeval.COCOeval(_dataset(images, truth), _dataset(images, _objects(found, kind)), KINDS[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return Precision(*(None if value < 0 else float(value) for value in judge.stats[:6]))


def _dataset(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> Any:
    """Its categories are those of the annotations: others have no precision."""
    dataset = pycocotools().coco.COCO()
    dataset.dataset = {
        "images": images,
        "categories": [{"id": number} for number in sorted({one["category_id"] for one in annotations})],
        "annotations": [dict(one) for one in annotations],  # it writes into these
    }
    dataset.createIndex()
    return dataset


def _objects(found: Sequence[Found], kind: str) -> list[dict[str, Any]]:
    """Detections as pycocotools takes them."""
    objects: list[dict[str, Any]] = []
    for index, (boxes, scores, labels, size, masks) in enumerate(found):
        for number, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
            one = {"id": len(objects) + 1, "image_id": index, "category_id": label, "score": score}
            if kind == "box":
                left, top, right, bottom = box
                sides = right - left, bottom - top
                objects.append({**one, "bbox": [left, top, *sides], "area": sides[0] * sides[1]})
            else:
                assert masks is not None
                outline = {"size": size, "counts": masks[number].encode()}
                objects.append({**one, "segmentation": outline, "area": int(pycocotools().mask.area(outline))})
    return objects


def _as_truth(found: Sequence[Found], kind: str, min_score: float) -> list[dict[str, Any]]:
    """The sure ones that are anywhere: an empty mask overlaps nothing."""
    return [{**one, "iscrowd": 0} for one in _objects(found, kind) if one["score"] >= min_score and one["area"] > 0]
