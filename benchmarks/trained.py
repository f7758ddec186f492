"""The two trained models and what they were not trained on, for the proofs of accuracy.

Pictures are files, a folder a class, and go the way that a user's do: calibration by `images_in`, evaluation by
`evaluate`, with the defaults of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.datasets import digit_pairs
from conformer_fast.datasets.batches import images_in
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.datasets.digits import digit_image, load_pixels, split_indices
from conformer_fast.model.precision import FORMATS
from conformer_fast.preprocessing.cpu import load_batch

DIGIT_PAIRS = Path(__file__).parent.parent / "tests" / "data" / "digit_pairs.safetensors"
SIZE = 64  # of both models' inputs
CALIBRATION_PICTURES = 512
TEST_PICTURES = 2000  # of digit pairs; digits have 359


class Trained(NamedTuple):
    """A model, the folder of held-out pictures with a folder a class, and how it is quantized, by precision."""

    model: cf.Conformer
    held_out: Path
    quantizations: Mapping[str, cf.Quantization]

    def images(self) -> tuple[Tensor, Tensor]:
        """The held-out pictures, preprocessed, (B, 3, 64, 64), and their labels."""
        data = open_dataset(self.held_out)
        return load_batch([self.held_out / picture.name for picture in data.pictures], SIZE), torch.tensor(data.labels)


def trained(name: str, folder: Path) -> Trained:
    """ "digits" or "digit-pairs", calibrated; its pictures are written below `folder`."""
    return {"digits": _digits, "digit-pairs": _digit_pairs}[name](folder)


def _digits(folder: Path) -> Trained:
    pixels, labels = load_pixels()
    for split, indices in zip(("train", "test"), split_indices(labels), strict=True):
        for index in indices[:CALIBRATION_PICTURES] if split == "train" else indices:
            file = folder / split / str(labels[index]) / f"{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            digit_image(pixels[index]).save(file)
    return _calibrated(cf.create_model("digits", "packaged"), folder)


def _digit_pairs(folder: Path) -> Trained:
    digit_pairs.write_folder(folder / "train", "train", CALIBRATION_PICTURES, seed=0)
    digit_pairs.write_folder(folder / "test", "test", TEST_PICTURES, seed=1)
    return _calibrated(cf.create_model(digit_pairs.CONFIG, DIGIT_PAIRS), folder)


def _calibrated(model: cf.Conformer, folder: Path) -> Trained:
    images = images_in(folder / "train", SIZE, CALIBRATION_PICTURES)
    quantizations = {name: cf.calibrate(model, images, precision=name, cache=folder / "counts") for name in FORMATS}
    return Trained(model, folder / "test", quantizations)
