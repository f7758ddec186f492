"""The UCI handwritten digits (8x8 gray, 1797 of them) as the packaged "digits" model sees them.

scikit-learn ships the data set, so nothing is downloaded. A fifth of each class is held out; the rest trains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..preprocessing.cpu import preprocess

IMAGE_SIZE = 64
INK = 16  # the data set's brightest value


class DigitsSplit(NamedTuple):
    """Images are float32 (B, 3, 64, 64), preprocessed; labels are int64 (B,), 0 ... 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits_split() -> DigitsSplit:
    """All digits, preprocessed and split. Raises ImportError when scikit-learn is not installed."""
    pixels, labels = load_pixels()
    images = torch.stack([preprocess(digit_image(digit), IMAGE_SIZE) for digit in pixels])
    targets = torch.from_numpy(labels)
    train, test = (torch.from_numpy(part) for part in split_indices(labels))
    return DigitsSplit(images[train], targets[train], images[test], targets[test])


def digit_image(pixels: np.ndarray) -> Image.Image:
    """One digit of the data set, (8, 8) with values 0 ... 16, as an RGB picture: white on black."""
    gray = np.rint(pixels * (255 / INK)).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, test): indices into `labels`, ascending; test is a fixed random fifth of each class."""
    random = np.random.RandomState(0)  # of NumPy's generators the one whose sequence never changes
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(len(members) / 5)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_pixels() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) values 0 ... 16, and (1797,) labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f'the digits come with scikit-learn ({error}): pip install "conformer-fast[digits]"'
        ) from error
    data = load_digits()
    return data.images, data.target.astype(np.int64)
