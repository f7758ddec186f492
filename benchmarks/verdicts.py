"""What 8 bits keep of the trained models, by what they were calibrated on: verdicts.py OUT.json. Run by `make bench`.

The floors of verify() part such quantizations. The arithmetic is simulated by functional.py, in INT8.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import conformer_fast as cf
from conformer_fast.datasets.digit_pairs import CONFIG, DigitPairs
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.inference.lower import lower
from conformer_fast.model.distance import relative_error, sqnr_db, top1_agreement
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.preprocessing.cpu import preprocess_batch

from .trained import DIGIT_PAIRS, SIZE

PICTURES = 128  # to calibrate on
PAIRS = 200  # held-out digit pairs; digits have 359
NARROWED = "conv_1.conv3"  # whose range is divided by NARROWER
NARROWER = 50
BATCH = 32


def _pixels(images: Tensor) -> Tensor:
    return images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def _black(images: Tensor) -> Tensor:
    return ((0 - torch.tensor(MEAN)) / torch.tensor(STD)).view(3, 1, 1).expand_as(images)


def _noise(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


CALIBRATED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    f"{PICTURES} of their pictures": lambda images: images,
    "8 of them": lambda images: images[:8],
    "one of them": lambda images: images[:1],
    "black pictures": _black,
    "noise": _noise,
    "pixels of 0 ... 1, not normalized": _pixels,
    "pixels of 0 ... 255, not normalized": lambda images: 255 * _pixels(images),
    "gray: zeros": torch.zeros_like,
}


def main(path: Path) -> None:
    split = load_digits_split()
    digits = cf.create_model("digits", "packaged")
    pairs = cf.create_model(CONFIG, DIGIT_PAIRS)
    rows = [
        *_rows("digits", digits, split.train_images[:PICTURES], split.test_images),
        *_rows("digit-pairs", pairs, _pairs("train", PICTURES), _pairs("test", PAIRS)),
    ]
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _pairs(split: Any, count: int) -> Tensor:
    pictures, _ = DigitPairs(split, seed=1).draw(count)
    return preprocess_batch([Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures], SIZE)


def _rows(name: str, model: cf.Conformer, train: Tensor, test: Tensor) -> Iterator[dict[str, Any]]:
    quantizations = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such images are doubtful is what is shown
        for what, images in CALIBRATED_ON.items():
            quantizations[what] = cf.calibrate(model, list(images(train).split(BATCH)))
    good = next(iter(quantizations.values()))
    narrowed = {**good.ranges, NARROWED: good.ranges[NARROWED] / NARROWER}
    quantizations[f"their pictures, `{NARROWED}` at 1/{NARROWER} of its range"] = replace(good, ranges=narrowed)
    exact = _scores(lower(model, LOGITS), test)
    for what, quantization in quantizations.items():
        found = _scores(lower(model, LOGITS, quantization=quantization), test)
        weaker = max(relative_error(*pair) for pair in zip(found, exact, strict=True))
        agreement = top1_agreement(found[0] + found[1], exact[0] + exact[1])
        row = {"model": name, "calibrated_on": what, "images": len(test), "sqnr_db": sqnr_db(weaker)}
        yield {**row, "agreement": agreement}
        print(row, agreement, flush=True)


@torch.no_grad()
def _scores(network: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*map(network, images.split(BATCH)), strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
