"""Names of a detector's classes: COCO's 80 in their order, which data/coco_classes.txt has, one a line."""

from __future__ import annotations

import warnings
from importlib.resources import files

from ..class_names import numbered_labels
from ..recipe import Recipe
from .config import COCO_CLASSES, DetectorConfig


def detector_labels(recipe: Recipe, config: DetectorConfig) -> tuple[str, ...]:
    """One name a class: those of the recipe; else COCO's for as many classes, or "class 0", "class 1", ..."""
    if recipe.labels:
        return recipe.labels
    return tuple(coco_labels() if config.num_classes == COCO_CLASSES else numbered_labels(config.num_classes))


def coco_labels() -> list[str]:
    """The 80 names, 0 "person" ... 79 "toothbrush"."""
    return files("conformer_fast").joinpath("data/coco_classes.txt").read_text(encoding="utf-8").splitlines()


def warn_of_assumptions(recipe: Recipe, config: DetectorConfig) -> None:
    """In one line, of what the weights do not say of a detector's pictures and classes, and is assumed."""
    assumed = []
    if recipe.mean is None:
        assumed.append("ImageNet's normalization")
    if recipe.labels is None and config.num_classes == COCO_CLASSES:
        assumed.append("COCO's class names")
    if assumed:
        warnings.warn(f"the weights do not say it; assumed: {', '.join(assumed)}", stacklevel=3)
