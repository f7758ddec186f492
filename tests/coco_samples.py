"""Annotation files in COCO's form, and detections that somebody is pretended to have made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detector_samples import small, smooth
from PIL import Image

from conformer_fast.engines.base import Settings
from conformer_fast.engines.reference import Reference
from conformer_fast.model.detector.class_names import detector_labels
from conformer_fast.model.detector.detect import Detections
from conformer_fast.model.detector.masks import run_lengths
from conformer_fast.model.digest import weights_sha256

SIZES = {"a.png": (20, 400), "deep/b.png": (400, 24), "c.png": (24, 380)}  # long ones: little is left when fitted
NAMES = ("ant", "bee", "cat", "dog", "elk")


def write_pictures(folder: Path) -> Path:
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(*size)).save(folder / name)
    return folder


def objects(*boxes: Sequence[float], scores: Sequence[float] = (), label: int = 0, name: str = "a.png") -> Detections:
    """Detections with these boxes x1 y1 x2 y2, whose masks are their whole pixels."""
    masks = torch.zeros(len(boxes), *SIZES[name], dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    likely = torch.tensor([*scores] or [0.9] * len(boxes))
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), likely, torch.full((len(boxes),), label), masks
    )


def annotation_file(found: Mapping[str, Detections], names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Detections in pictures of SIZES as what is right there, with outlines as run lengths. Ids are no places: they
    fall, and leave gaps."""
    numbers = {name: 1000 - 7 * index for index, name in enumerate(SIZES)}
    annotations = []
    for name, (boxes, _, labels, masks) in found.items():
        for (x1, y1, x2, y2), label, mask in zip(boxes.tolist(), labels.tolist(), masks, strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": numbers[name],
                    "category_id": 10 + 3 * label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": run_lengths(mask),
                }
            )
    return {
        "info": {"year": 2017},
        "images": [
            {"id": numbers[name], "file_name": name, "height": height, "width": width}
            for name, (height, width) in SIZES.items()
        ],
        "categories": [{"id": 10 + 3 * index, "name": name} for index, name in enumerate(names)],
        "annotations": annotations,
    }


def write_json(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value))
    return file


class Pretended:
    """A compiled detector that finds what it is told to. calls: how often it ran; stop: it ends the program then."""

    def __init__(self, found: Mapping[str, Detections], reference: Any = None, precision: str = "fp32") -> None:
        self.settings, self.reason = Settings(Reference(), precision), "pretended"
        self.reference = reference or small()
        self.config, self.recipe = self.reference.config, self.reference.recipe
        self.labels = detector_labels(self.recipe, self.config)
        self.calls, self.stop = 0, -1
        self._found = {SIZES[name]: detections for name, detections in found.items()}

    @property
    def identity(self) -> dict[str, Any]:
        quantization = self.settings.quantization
        return {"weights": weights_sha256(self.reference), "quantization": quantization and quantization.digest}

    def __call__(self, images: torch.Tensor, sizes: Any = None) -> list[Detections]:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        ((_, _, height, width),) = sizes
        name = next(name for name, size in SIZES.items() if size == (height, width))
        return [self._found.get((height, width), objects(name=name))]
