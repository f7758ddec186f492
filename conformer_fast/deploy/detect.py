"""What a detector finds in picture files, as values for people and programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..datasets.dataset import PictureSet, open_files
from ..errors import ImageError, path_text, several
from ..model.detector.detect import Detections, on_cpu
from ..model.detector.masks import run_lengths
from ..preprocessing.detection import fit_pictures, upright
from ..progress import Bar
from .damaged import Damaged

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


def detect_files(
    detector: FastDetector, paths: Sequence[str | os.PathLike[str]]
) -> Iterator[DetectedPicture | Damaged]:
    """One result a picture, in their order. Raises ArgumentTypeError for a single path and for what is none."""
    pictures = open_files([path_text("a picture", path) for path in several("paths", paths)])
    return (found for found, _ in detected(detector, pictures))


def detected(
    detector: FastDetector, pictures: PictureSet
) -> Iterator[tuple[DetectedPicture, Image.Image] | tuple[Damaged, None]]:
    """One result a picture, in their order, with the picture that it is of."""
    with Bar("detecting", len(pictures), "picture") as progress:
        for index, picture in enumerate(pictures.pictures):
            try:
                image = upright(pictures.load(index))
                yield _detected(detector, picture.name, image), image
            except ImageError as error:
                yield Damaged(picture.name, str(error)), None
            progress.update(1)


def _detected(detector: FastDetector, path: str, picture: Image.Image) -> DetectedPicture:
    try:
        images, sizes = fit_pictures([picture], recipe=detector.recipe)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    (found,) = detector(images.to(detector.device), sizes)
    return DetectedPicture(path, picture.width, picture.height, on_cpu(found), detector.labels)
