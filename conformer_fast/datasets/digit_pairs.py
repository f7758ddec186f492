"""Photo-like pictures of two-digit numbers, 100 classes, drawn from the real handwritten digits of digits.py.

Something to evaluate, calibrate and train on where ImageNet is not at hand: nothing is downloaded, and there are as
many pictures as one asks for. Each number is two handwritten digits, turned, sheared, scaled and moved, in an ink of
its own on a cluttered ground. Training numbers use only digits that train the "digits" model, test numbers only those
held out from it.

    python -m conformer_fast.datasets.digit_pairs FOLDER --count 2000     # FOLDER/00 ... FOLDER/99, as ImageNet's are
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..model.config import ConformerConfig
from ..progress import Bar
from .digits import INK, load_pixels, split_indices

# Every part of a published variant at its real depth, in a size that a CPU trains in an hour.
CONFIG = ConformerConfig(channel_ratio=1, embed_dim=128, num_heads=2, depth=12, mlp_ratio=4, num_classes=100)
IMAGE_SIZE = 64  # the model's input
WIDTH, HEIGHT = 112, 96  # of a picture, in pixels


class DigitPairs:
    """Draws pictures of one split, the same for the same seed. Raises ImportError when scikit-learn is missing."""

    def __init__(self, split: Literal["train", "test"], seed: int) -> None:
        pixels, labels = load_pixels()
        members = split_indices(labels)[split == "test"]
        self._digits = torch.from_numpy(pixels[members]).float() / INK  # (D, 8, 8), 0 ... 1
        self._labels = torch.from_numpy(labels[members])
        self._random = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures uint8 (count, 3, HEIGHT, WIDTH) and their numbers int64 (count,), 0 ... 99."""
        first, second = self._pick(count), self._pick(count)
        ink = self._ink(first, -1).maximum(self._ink(second, 1))  # (count, 1, HEIGHT, WIDTH)
        ground, color = self._ground(count), self._uniform(count, 3, 1, 1)
        mean = ground.mean((2, 3), keepdim=True)
        faint = (color - mean).norm(dim=1, keepdim=True) < 0.6
        color = torch.where(faint, (mean + 0.5) % 1, color)
        picture = ground + ink * (color - ground) + 0.05 * self._normal(count, 3, HEIGHT, WIDTH)
        numbers = 10 * self._labels[first] + self._labels[second]
        return (picture.clamp(0, 1) * 255).round().to(torch.uint8), numbers

    def _pick(self, count: int) -> Tensor:
        return torch.randint(len(self._digits), (count,), generator=self._random)

    def _ink(self, which: Tensor, side: int) -> Tensor:
        """How much each pixel is covered, 0 ... 1: one digit each, left (side -1) or right (1) of the middle."""
        B = len(which)
        angle, shear = self._between(B, -0.35, 0.35), self._between(B, -0.35, 0.35)
        height, width = self._between(B, 0.5, 0.75), self._between(B, 0.26, 0.36)  # half extents; the picture's is 1
        x, y = side * self._between(B, 0.3, 0.4), self._between(B, -0.15, 0.15)
        # From the picture's coordinates to the digit's: move, turn, scale.
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([cos / width, (sin + shear) / width, -(cos * x + (sin + shear) * y) / width], 1),
            torch.stack([-sin / height, cos / height, (sin * x - cos * y) / height], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [B, 1, HEIGHT, WIDTH], align_corners=False)
        drawn = F.grid_sample(self._digits[which][:, None], grid, mode="bicubic", align_corners=False)
        strength = self._between(B, 1.0, 1.5).view(B, 1, 1, 1)
        return (drawn * strength).clamp(0, 1)

    def _ground(self, count: int) -> Tensor:
        """Soft colors, finer stains and two strokes across, (count, 3, HEIGHT, WIDTH)."""
        ground = self._uniform(count, 3, 1, 1)
        for cells, strength in ((2, 0.12), (5, 0.08), (14, 0.06)):
            stains = self._normal(count, 3, cells, cells)
            ground = ground + strength * F.interpolate(stains, (HEIGHT, WIDTH), mode="bicubic", align_corners=False)
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
        for _ in range(2):
            angle, offset = self._between(count, 0, math.pi), self._between(count, -0.9, 0.9)
            across = angle.cos().view(-1, 1, 1) * columns + angle.sin().view(-1, 1, 1) * rows - offset.view(-1, 1, 1)
            stroke = (1 - across.abs() / 0.04).clamp(0, 1)[:, None]
            ground = ground + stroke * (self._uniform(count, 3, 1, 1) - ground)
        return ground

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random)

    def _between(self, count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * self._uniform(count)


def write_folder(folder: Path, split: Literal["train", "test"], count: int, seed: int, batch: int = 100) -> None:
    """PNG files FOLDER/<number>/<index>.png. Raises FileExistsError when there is something in `folder`."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    pairs = DigitPairs(split, seed)
    for number in range(CONFIG.num_classes):
        (folder / f"{number:02d}").mkdir(parents=True)
    with Bar("drawing", count, "picture") as progress:
        for start in range(0, count, batch):
            pictures, numbers = pairs.draw(min(batch, count - start))
            for index, (picture, number) in enumerate(zip(pictures, numbers.tolist(), strict=True), start):
                image = Image.fromarray(picture.permute(1, 2, 0).numpy())
                image.save(folder / f"{number:02d}" / f"{index:06d}.png")
            progress.update(len(pictures))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write pictures of two-digit numbers, a folder a class.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=["train", "test"], default="test", help="of the digits (default test)")
    parser.add_argument("--count", type=int, default=2000, help="pictures in all (default 2000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    write_folder(options.folder, options.split, options.count, options.seed)


if __name__ == "__main__":
    main()
