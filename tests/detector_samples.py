"""Detectors with the recipe's weights, and pictures for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import goldens
import lookalikes
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from conformer_fast.checkpoints.metadata import metadata_of
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.detector.config import DetectorConfig
from conformer_fast.model.detector.detect import Detections, ImageSize
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.recipe import Recipe

LABELS = ("ant", "bee", "cat", "dog", "elk")
BACKBONE = ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=4, depth=6, mlp_ratio=2)
SMALL = DetectorConfig(BACKBONE, num_classes=5, channels=32, hidden=64, proposals=100, detections=20)
RECORDED = {  # what the recorded detector's weights are multiplied by, so that its scores differ
    "rpn_head.rpn_cls.weight": 0.03,
    "rpn_head.rpn_reg.weight": 0.005,
    "roi_head.bbox_head.fc_cls.weight": 0.06,
    "roi_head.bbox_head.fc_reg.weight": 0.02,
    "roi_head.mask_head.conv_logits.weight": 0.05,
}


def filled(config: DetectorConfig, dtype: torch.dtype = torch.float32) -> Detector:
    """In eval mode. Its scores are spread, and some of its boxes overlap."""
    detector = Detector(config).eval().requires_grad_(False)
    for name, tensor in detector.state_dict().items():
        tensor.copy_(torch.from_numpy(lookalikes.recipe_tensor(name, tuple(tensor.shape))))
        if name in RECORDED:
            tensor.mul_(RECORDED[name])
    return detector.to(dtype)


@cache
def small(masks: bool = True) -> Detector:
    """It is shared: do not change it."""
    return filled(DetectorConfig(**{**vars(SMALL), "masks": masks}))


def write_weights(file: Path, size: int | None = None) -> str:
    """Those of `small`, with names of classes and a normalization. size: of its pictures"""
    state = {name: tensor for name, tensor in small().state_dict().items() if tensor.is_floating_point()}
    recipe = Recipe(size, num_heads=4, labels=LABELS, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    save_file(state, file, metadata=metadata_of(recipe))
    return str(file)


def image(height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[ImageSize]]:
    """The recipe's picture, padded to multiples of 32."""
    pixels = torch.from_numpy(goldens.recipe_image(1, height, width, "det")).to(dtype)
    return F.pad(pixels, (0, -width % 32, 0, -height % 32)), [ImageSize(height, width, height, width)]


def alike(found: Detections, expected: Detections, atol: float = 1e-3) -> None:
    """The same objects in the same order."""
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.boxes.double(), expected.boxes.double(), rtol=1e-5, atol=atol)
    torch.testing.assert_close(found.scores.double(), expected.scores.double(), rtol=0, atol=1e-5)
    if expected.masks is None or found.masks is None:
        assert found.masks is expected.masks
    else:
        assert (found.masks == expected.masks).double().mean() > 0.999


def smooth(height: int, width: int) -> np.ndarray:
    """A picture's pixels, (height, width, 3) uint8."""
    values = goldens.recipe_image(1, height, width, "picture")[0].transpose(1, 2, 0)
    return np.clip(values * 60 + 128, 0, 255).astype(np.uint8)
