"""Pictures with handwritten digits scattered over them, with boxes, labels and masks, drawn from digits.py's digits.

Something to detect where COCO is not at hand: nothing is downloaded, and there are as many pictures as one asks for.
Each digit is turned, scaled and put anywhere, in a textured ink of its own on a textured ground, where it may cover a
part of others. Training pictures use only digits that train the "digits" model, test pictures only those held out from
it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import ArgumentError, a_path, one_of, whole
from ..model.detector.boxes import overlaps
from ..model.detector.masks import run_lengths
from .digits import INK, load_pixels, split_indices

SIDE = 128  # of a picture, in pixels
FEWEST, MOST = 2, 6  # digits of a picture
SMALLEST, LARGEST = 24, 56  # pixels of the side of a digit's 8x8 pixels
LEAST_CONTRAST = 0.35  # distance of a digit's color from the mean of the ground behind it; black and white have 1.7
LARGEST_OVERLAP = 0.2  # of two digits' boxes, intersection over union


class Objects(NamedTuple):
    """The digits of a picture, those on top first.

    boxes:  float32 (N, 4), x1 y1 x2 y2 in pixels, around the masks
    labels: int64 (N,), 0 ... 9
    masks:  bool (N, SIDE, SIDE), True on what is seen of a digit's strokes
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class ScatteredDigits:
    """Draws pictures of one split, the same for the same seed. Raises ImportError when scikit-learn is missing."""

    def __init__(self, split: Literal["train", "test"], seed: int) -> None:
        one_of("split", split, ("train", "test"))
        pixels, labels = load_pixels()
        members = split_indices(labels)[split == "test"]
        self._digits = torch.from_numpy(pixels[members]).float() / INK  # (D, 8, 8), 0 ... 1
        self._labels = torch.from_numpy(labels[members])
        self._random = np.random.RandomState(seed)

    def draw(self, count: int) -> tuple[Tensor, list[Objects]]:
        """Pictures uint8 (count, 3, SIDE, SIDE) and the digits in each."""
        whole("count", count)
        pictures, objects = zip(*(self._draw() for _ in range(count)), strict=True)
        return torch.stack(pictures), list(objects)

    def draw_on(self, ground: Tensor) -> tuple[Tensor, Objects]:
        """The same on a picture of one's own, uint8 (3, SIDE, SIDE): one of a kind that no detector was trained on."""
        if ground.shape != (3, SIDE, SIDE) or ground.dtype != torch.uint8:
            raise ArgumentError(
                f"a picture to draw on is uint8 (3, {SIDE}, {SIDE}), got {ground.dtype} {tuple(ground.shape)}"
            )
        return self._draw(ground.numpy() / 255)

    def _draw(self, ground: np.ndarray | None = None) -> tuple[Tensor, Objects]:
        inks, objects = self._scatter()
        picture = self._textured(self._random.rand(3), 0.25) if ground is None else ground
        for ink in reversed(inks):
            behind = (picture * ink).sum((1, 2)) / ink.sum()
            picture = picture + ink * (self._textured(self._color_on(behind), 0.1) - picture)
        picture = picture + 0.03 * self._random.standard_normal(picture.shape)
        return torch.from_numpy(np.rint(picture.clip(0, 1) * 255).astype(np.uint8)), objects

    def _scatter(self) -> tuple[list[np.ndarray], Objects]:
        """How much of each pixel each digit covers, (SIDE, SIDE), 0 ... 1, and the digits."""
        wanted = self._random.randint(FEWEST, MOST + 1)
        inks: list[np.ndarray] = []
        labels, masks, boxes = [], torch.zeros(0, SIDE, SIDE, dtype=torch.bool), torch.zeros(0, 4)
        while len(inks) < wanted:
            index = self._random.randint(len(self._digits))
            ink = self._ink(self._digits[index])
            mask = seen(ink >= 0.5, masks.any(0))
            if mask is None or (overlaps(box_of(mask)[None], boxes) > LARGEST_OVERLAP).any():
                continue
            inks.append(ink.numpy())
            labels.append(self._labels[index])
            masks, boxes = torch.cat([masks, mask[None]]), torch.cat([boxes, box_of(mask)[None]])
        return inks, Objects(boxes, torch.stack(labels), masks)

    def _ink(self, digit: Tensor) -> Tensor:
        """How much of each pixel a digit (8, 8) covers where it is put, (SIDE, SIDE), 0 ... 1."""
        angle, size = self._random.uniform(-0.35, 0.35), self._random.uniform(SMALLEST, LARGEST)
        x, y = self._random.uniform(size / 2, SIDE - size / 2, 2)
        # From the picture's coordinates to the digit's: move, turn, scale.
        cos, sin = math.cos(angle) * SIDE / size, math.sin(angle) * SIDE / size
        x, y = 2 * x / SIDE - 1, 2 * y / SIDE - 1  # the picture is from -1 to 1
        rows = torch.tensor([[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]]).float()
        grid = F.affine_grid(rows[None], [1, 1, SIDE, SIDE], align_corners=False)
        drawn = F.grid_sample(digit[None, None], grid, mode="bicubic", align_corners=False)[0, 0]
        return (drawn * self._random.uniform(1.0, 1.5)).clamp(0, 1)

    def _color_on(self, behind: np.ndarray) -> np.ndarray:
        """A random color (3,) that differs from the one behind."""
        while True:
            color = self._random.rand(3)
            if np.linalg.norm(color - behind) >= LEAST_CONTRAST:
                return color

    def _textured(self, color: np.ndarray, strength: float) -> np.ndarray:
        """This color with a gradient, and with stains or stripes. (3,) -> (3, SIDE, SIDE)."""
        pattern = self._stains() if self._random.rand() < 0.5 else self._stripes()
        gradient = self._along() / SIDE
        toward, across = strength * self._random.uniform(-1, 1, (2, 3, 1, 1))
        return color[:, None, None] + toward * gradient + across * pattern

    def _stains(self) -> np.ndarray:
        """Smooth noise, -1 ... 1, (SIDE, SIDE)."""
        cells = self._random.randint(3, 20)
        place = np.linspace(0, cells - 1, SIDE)
        weights = (1 - abs(place[:, None] - np.arange(cells))).clip(0)  # of linear interpolation, (SIDE, cells)
        return weights @ self._random.uniform(-1, 1, (cells, cells)) @ weights.T

    def _stripes(self) -> np.ndarray:
        """-1 ... 1, (SIDE, SIDE)."""
        period, phase = self._random.uniform(6, 40), self._random.uniform(0, 2 * math.pi)
        return np.sin(self._along() * (2 * math.pi / period) + phase)

    def _along(self) -> np.ndarray:
        """Pixels from the middle in a random direction, (SIDE, SIDE)."""
        angle, place = self._random.uniform(0, 2 * math.pi), np.arange(SIDE) + 0.5 - SIDE / 2
        return math.cos(angle) * place + math.sin(angle) * place[:, None]


def write_coco(folder: str | os.PathLike[str], pictures: Tensor, objects: list[Objects]) -> Path:
    """What was drawn, as files in COCO's form for `evaluate_detector`: N.png and instances.json, whose path is
    returned. folder: it is there."""
    if len(pictures) != len(objects):
        raise ArgumentError(f"{len(pictures)} pictures and the objects of {len(objects)}; give those of each")
    folder = a_path("the folder", folder)
    annotations = [
        {
            "image_id": index,
            "category_id": int(label),
            "iscrowd": 0,
            "area": int(mask.sum()),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": run_lengths(mask),
        }
        for index, found in enumerate(objects)
        for (x1, y1, x2, y2), label, mask in zip(found.boxes.tolist(), found.labels, found.masks, strict=True)
    ]
    names = [f"{index}.png" for index in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / name)
    content = {
        "images": [{"id": index, "file_name": name, "height": SIDE, "width": SIDE} for index, name in enumerate(names)],
        "categories": [{"id": label, "name": str(label)} for label in range(10)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return file


def seen(mask: Tensor, covered: Tensor) -> Tensor | None:
    """What is seen of a mask, both (H, W), bool; None where more than half of it is covered."""
    left = mask & ~covered
    return left if 2 * left.sum() >= mask.sum() > 0 else None


def box_of(mask: Tensor) -> Tensor:
    """The box around a mask, float32 (4,), x1 y1 x2 y2: the edges of its outermost pixels. (H, W), not empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
