"""The recorded outputs in tests/data, and reference models and images with the values they were recorded with."""

from __future__ import annotations

import runpy
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import lookalikes
import numpy as np
import torch
from torch import Tensor

from conformer_fast.checkpoints.create import create_model
from conformer_fast.model.reference import Conformer

DATA = Path(__file__).parent / "data"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest error over the recorded values' standard deviation: in float64 it is the rounding of the stored float32."""

recipe_image = runpy.run_path(str(DATA / "recipe.py"))["image"]


class Case(NamedTuple):
    """One recorded run: a file of tests/data without its suffix, a variant's name and the image batch's size."""

    file: str
    variant: str
    size: str  # BxHxW

    def __str__(self) -> str:
        return f"{self.variant}-{self.size}"

    @property
    def recorded(self) -> dict[str, np.ndarray]:
        """What is stored of it, by name."""
        prefix = f"{self.variant}/{self.size}/"
        return {key.removeprefix(prefix): value for key, value in _load(self.file).items() if key.startswith(prefix)}

    def model(self, dtype: torch.dtype) -> Conformer:
        return build(self.variant, dtype)

    def images(self, dtype: torch.dtype) -> Tensor:
        return image(*map(int, self.size.split("x")), dtype=dtype)


def cases(*files: str) -> list[Case]:
    """Every run recorded in these files, variant by variant."""
    found = {Case(file, *key.split("/")[:2]) for file in files for key in _load(file)}
    return sorted(found, key=lambda case: (case.variant, case.file, case.size))


def image(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(recipe_image(batch, height, width)).to(dtype)


def build(variant: str, dtype: torch.dtype) -> Conformer:
    """The reference with the recipe's weights, in eval mode. It is shared: do not change it."""
    return _build(variant) if dtype == torch.float32 else _build_as(variant, dtype)


def error(value: Tensor, expected: np.ndarray | Tensor) -> float:
    """The largest absolute difference over the standard deviation of `expected`."""
    expected = torch.as_tensor(expected).double()
    assert value.shape == expected.shape
    return ((value.detach().double() - expected).abs().max() / expected.std()).item()


@cache
def _load(file: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"{file}.npz"))


@cache
def _build(variant: str) -> Conformer:
    return lookalikes.fill(create_model(variant)).requires_grad_(False)


@lru_cache(maxsize=1)  # the largest takes 0.7 GB
def _build_as(variant: str, dtype: torch.dtype) -> Conformer:
    model = create_model(variant).to(dtype).requires_grad_(False)
    model.load_state_dict(_build(variant).state_dict())
    return model
