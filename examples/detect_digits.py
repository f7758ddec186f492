"""Detects handwritten digits that are scattered on a photograph: python examples/detect_digits.py

The detector ships with the package and was trained on drawn textures alone; the photograph, Hubble's deep field, ships
with scikit-image, and no training picture had these digits. Prints what was found beside what is there, and draws it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

import conformer_fast as cf
from conformer_fast.datasets.scattered_digits import SIDE, Objects, ScatteredDigits
from conformer_fast.deploy.draw import drawn
from conformer_fast.model.detector.boxes import overlaps

SEED = 6
ENLARGED = 5  # pixels of a side of what is drawn, for each of the detector's
MIN_SCORE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("detected.png"))
    args = parser.parse_args()
    if not args.output.parent.is_dir():
        parser.error(f"there is no folder {args.output.parent}")
    photograph = Image.fromarray(data.hubble_deep_field()).resize((SIDE, SIDE))
    picture, truth = scattered_on(photograph, SEED)
    fast = cf.compile(cf.create_detector(weights="packaged"))
    found = detections_of(fast, picture)
    print(fast)
    for line in beside(found, truth):
        print(line)
    drawn(enlarged(picture), found, fast.labels, MIN_SCORE).save(args.output)
    print("drawn in", args.output)


def scattered_on(photograph: Image.Image, seed: int) -> tuple[Image.Image, Objects]:
    """Held-out digits on a picture of SIDE x SIDE pixels, and what they are."""
    ground = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
    pixels, truth = ScatteredDigits("test", seed).draw_on(ground)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()), truth


def enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE * ENLARGED, SIDE * ENLARGED), Image.Resampling.BICUBIC)


def detections_of(fast: cf.FastDetector, picture: Image.Image) -> cf.Detections:
    """Of a picture, in pixels of the enlarged one."""
    images, (size,) = cf.fit_pictures([picture], recipe=fast.recipe)
    larger = size._replace(original_height=SIDE * ENLARGED, original_width=SIDE * ENLARGED)
    (found,) = fast(images, [larger])
    return found


def beside(found: cf.Detections, truth: Objects) -> list[str]:
    """A line for each digit that is there, with what was found in its place, then one for each that is not there."""
    lines, used = [], set()
    shared = overlaps(truth.boxes * ENLARGED, found.boxes)
    for row, label in zip(shared, truth.labels.tolist(), strict=True):
        sure = [index for index in range(len(row)) if row[index] >= 0.5 and found.scores[index] >= MIN_SCORE]
        used.update(sure)
        seen = ", ".join(f"{int(found.labels[index])} ({float(found.scores[index]):.0%})" for index in sure)
        lines.append(f"there is a {label}, found: {seen or 'nothing'}")
    wrong = [index for index, score in enumerate(found.scores.tolist()) if score >= MIN_SCORE and index not in used]
    return [*lines, *(f"found a {int(found.labels[index])} where there is none" for index in wrong)]


if __name__ == "__main__":
    main()
