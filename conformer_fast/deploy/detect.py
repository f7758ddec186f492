"""What a detector finds in picture files, as values for people and programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ImageError, path_text, several
from ..model.detector.detect import Detections, on_cpu
from ..model.detector.masks import run_lengths
from ..preprocessing.detection import fit_pictures, load_upright
from ..progress import Bar

if TYPE_CHECKING:
    from .fast_detector import FastDetector


@dataclass(frozen=True)
class DetectedPicture:
    """What was found in the picture at `path`, of width x height pixels. labels: the names of all classes."""

    path: str
    width: int
    height: int
    detections: Detections
    labels: tuple[str, ...]

    def objects(self, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Each detection of at least this score as JSON values; its mask as COCO's run lengths, column by column."""
        boxes, scores, labels, masks = self.detections
        return [
            {
                "label": self.labels[label],
                "index": label,
                "score": score,
                "box": [round(side, 2) for side in box],
                **({} if masks is None else {"mask": run_lengths(masks[number])}),
            }
            for number, (box, score, label) in enumerate(
                zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
            )
            if score >= min_score
        ]


@dataclass(frozen=True)
class Damaged:
    """A picture that could not be used, and what is wrong with it."""

    path: str
    error: str


def detect_files(
    detector: FastDetector, paths: Sequence[str | os.PathLike[str]]
) -> Iterator[DetectedPicture | Damaged]:
    """One result a picture, in their order. Raises ArgumentTypeError for a single path and for what is none."""
    names = [path_text("a picture", path) for path in several("paths", paths)]

    def found() -> Iterator[DetectedPicture | Damaged]:
        with Bar("detecting", len(names), "picture") as progress:
            for name in names:
                try:
                    yield _detected(detector, name, load_upright(name))
                except ImageError as error:
                    yield Damaged(name, str(error))
                progress.update(1)

    return found()


def _detected(detector: FastDetector, path: str, picture: Image.Image) -> DetectedPicture:
    try:
        images, sizes = fit_pictures([picture], recipe=detector.recipe)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    (found,) = detector(images.to(detector.device), sizes)
    return DetectedPicture(path, picture.width, picture.height, on_cpu(found), detector.labels)
