"""The published accuracy on ImageNet's 50,000 validation pictures at 224x224, in percent, of the sum of both heads."""

from __future__ import annotations

from typing import NamedTuple

from ..model.config import VARIANTS, ConformerConfig

PICTURES = 50_000
SIZE = 224


class Published(NamedTuple):
    """source: whose figure it is, of whose weights; top5 is None where none was published."""

    source: str
    top1: float
    top5: float | None


# configs/conformer/README.md of github.com/open-mmlab/mmpretrain; of the weights that download.py fetches
MMPRETRAIN = {
    "tiny-p16": (81.31, 95.60),
    "small-p32": (81.96, 96.02),
    "small-p16": (83.32, 96.46),
    "base-p16": (83.82, 96.59),
}
OFFICIAL = {"tiny-p16": 81.3, "small-p16": 83.4, "base-p16": 84.1}  # README of github.com/pengzhiliang/Conformer


def published_for(config: ConformerConfig) -> list[Published]:
    """What was published for a model of these sizes; nothing for sizes of no published variant."""
    found = []
    for name in (name for name, variant in VARIANTS.items() if variant == config):
        found.append(Published("mmpretrain", *MMPRETRAIN[name]))
        if name in OFFICIAL:
            found.append(Published("official repository", OFFICIAL[name], None))
    return found
