"""What an evaluation of a detector found: precision of boxes and masks, beside the reference and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import shown
from ..tables import Column, Table
from .average_precision import SURE, Precision
from .published import COCO_PICTURES, PublishedDetector

HEADINGS = "", "AP", "AP50", "AP75", "APs", "APm", "APl"
MOST_LETTERS = 1000  # of an error


@dataclass(frozen=True)
class DetectorEvaluation:
    """What `evaluate_detector` found. Each precision is from 0 to 1, and by what it is of: "box", and "mask" if there
    are any.

    annotations: the annotation file; images: the folder of its pictures
    pictures:    how many it has (with a limit, were taken); objects: how many these have
    damaged:     names of pictures that could not be used, and what is wrong with them; nothing was found in these
    reason:      why the detector runs by this backend, in this precision and on this device
    size:        pixels that no edge of a picture exceeds when it is fitted; None: the paper's two edges
    classes:     how the detector's classes were matched with the file's categories
    compiled:    precision of the detector; reference: of its reference, empty if none ran
    agreement:   precision of the detector where what the reference found with a score of SURE or more is the truth
    published:   figures for a detector of these sizes; they are of COCO's val 2017
    images_run:  pictures that were run now; others were known before
    """

    annotations: str
    images: str
    pictures: int
    objects: int
    damaged: dict[str, str]
    backend: str
    precision: str
    device: str
    reason: str
    size: int | None
    classes: str
    compiled: dict[str, Precision]
    reference: dict[str, Precision]
    agreement: dict[str, Precision]
    published: tuple[PublishedDetector, ...]
    images_run: int

    @property
    def comparable(self) -> bool:
        """Whether as many pictures of the same size were evaluated as for the published figures."""
        return self.pictures == COCO_PICTURES and not self.damaged and self.size is None

    def difference(self, published: PublishedDetector) -> float | None:
        """By how much the boxes' precision is above a published figure."""
        ap = self.compiled["box"].ap
        return None if ap is None else ap - published.box

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON values."""
        published = [
            {**figure._asdict(), "difference": self.difference(figure), "comparable": self.comparable}
            for figure in self.published
        ]
        damaged = [{"picture": name, "error": error} for name, error in self.damaged.items()]
        return {**asdict(self), "damaged": damaged, "published": published}

    def __str__(self) -> str:
        damaged = f"; {len(self.damaged)} damaged, where nothing was found" if self.damaged else ""
        rows = _rows("", self.compiled) + _rows("reference's ", self.reference)
        rows += _rows(f"by reference's over {SURE} ", self.agreement)
        lines = [
            self.reason,
            f"{self.annotations}: {self.objects} objects in {self.pictures} pictures{damaged}; classes by "
            f"{self.classes}",
            *Table(*(Column(heading, ">" if heading else "") for heading in HEADINGS)).lines(rows),
        ]
        lines += map(self._compared, self.published)
        lines += [f"damaged: {shown(error, MOST_LETTERS)}" for error in self.damaged.values()]
        return "\n".join(lines)

    def _compared(self, published: PublishedDetector) -> str:
        points = self.difference(published)
        here = "" if points is None else f" ({100 * points:+.1f} here)"
        other = "" if self.comparable else f"; not comparable, that is of the {COCO_PICTURES} pictures of COCO val 2017"
        return f"published by {published.source}: box AP {100 * published.box:.1f}%{here}{other}"


def _rows(whose: str, precisions: Mapping[str, Precision]) -> list[tuple[str | None, ...]]:
    return [
        (f"{whose}{kind}", *(None if value is None else f"{100 * value:.1f}%" for value in asdict(found).values()))
        for kind, found in precisions.items()
    ]
