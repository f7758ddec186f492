"""Published figures: of classifiers on ImageNet's 50,000 validation pictures at 224x224, in percent, of the sum of both
heads; of detectors on COCO's 5,000 of val 2017."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..model.config import VARIANTS, ConformerConfig
from ..model.detector.config import DetectorConfig, detector_config

PICTURES = 50_000
SIZE = 224
COCO_PICTURES = 5_000


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


class PublishedDetector(NamedTuple):
    """source: whose figure it is; box: average precision of boxes, from 0 to 1."""

    source: str
    box: float


DETECTORS = {"faster-rcnn": 0.431, "mask-rcnn": 0.436}  # on small-p32; arXiv 2105.03889


def detector_published_for(config: DetectorConfig) -> list[PublishedDetector]:
    """What was published for a detector of these sizes and COCO's classes; nothing for any other."""
    alike = replace(config, backbone=replace(config.backbone, num_classes=VARIANTS["small-p32"].num_classes))
    return [
        PublishedDetector("arXiv 2105.03889", box) for name, box in DETECTORS.items() if alike == detector_config(name)
    ]
