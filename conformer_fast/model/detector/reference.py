"""The reference detector: Mask R-CNN or Faster R-CNN on a Conformer. It defines correctness.

Parameter names are those of the official detection fork, so its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ArgumentError, ArgumentTypeError, several, shown
from ..forked import before_computing
from ..recipe import Recipe, checked
from ..reference import Conformer
from .config import MULTIPLE, DetectorConfig
from .detect import PYTORCH, Detections, ImageSize, detect
from .parts import FPN, Proposed, Proposer, RoIHead, RPNHead

LARGEST_PICTURE = 100_000  # pixels of a side


class Detector(nn.Module):
    """images (B, 3, H, W) and the sizes of the pictures in them -> a list of B Detections.

    H and W are multiples of 32: pictures are normalized, then padded with zeros at the bottom and right. `recipe` is
    what it was trained for: the classes' names and the normalization of its pictures.
    """

    operators = PYTORCH

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if not isinstance(config, DetectorConfig):
            raise ArgumentTypeError(
                f"a Detector is made of a DetectorConfig, got {shown(repr(config))}; create_detector takes names"
            )
        self.config = config
        self._recipe = Recipe()
        self.backbone = Conformer(config.backbone, features_only=True)
        self.neck = FPN(config)
        self.rpn_head = RPNHead(config)
        self.roi_head = RoIHead(config)
        self._initialize()

    @property
    def recipe(self) -> Recipe:
        return self._recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        checked(recipe).check(replace(self.config.backbone, num_classes=self.config.num_classes))
        self._recipe = recipe

    @property
    def proposer(self) -> Proposer:
        """Backbone, pyramid and region proposals as one module, which shares this one's parameters."""
        return Proposer(self.config, self.backbone, self.neck, self.rpn_head, self.recipe.size).train(self.training)

    def _initialize(self) -> None:
        """Starting values: each layer hands on about as much as it reads, and what losses are of begins near zero."""
        mask_head = self.roi_head.mask_head
        for layer in (*self.neck.modules(), *self.rpn_head.modules(), *self.roi_head.modules()):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        head = self.roi_head.bbox_head
        last: list[Any] = [self.rpn_head.rpn_cls, self.rpn_head.rpn_reg, head.fc_cls, head.fc_reg]
        for layer in [*last, mask_head.conv_logits] if mask_head else last:
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images: Tensor, sizes: Sequence[ImageSize] | None = None) -> list[Detections]:
        """sizes: default: each image is a picture of its own size."""
        before_computing()
        return detect(self, self.config, images, checked_sizes(images, sizes))

    def propose(self, images: Tensor) -> Proposed:
        return self.proposer(images)

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.roi_head.bbox_head(features)

    def masks(self, features: Tensor) -> Tensor:
        assert self.roi_head.mask_head is not None
        return self.roi_head.mask_head(features)


def checked_sizes(images: Tensor, sizes: Sequence[ImageSize] | None) -> list[ImageSize]:
    """The sizes, one an image. Raises ArgumentError for images or sizes that a detector cannot take."""
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(
            f"images must be a tensor (B, 3, H, W), got a {type(images).__name__}; see fit_pictures"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ArgumentError(f"images must have shape (batch, 3, height, width), none empty, got {tuple(images.shape)}")
    if images.layout != torch.strided or images.is_nested:
        raise ArgumentTypeError(f"images must be one dense tensor, got a {images.layout} one")
    if not images.is_floating_point():
        raise ArgumentError(f"images must be floating point and normalized, got {images.dtype}; see fit_pictures")
    bad = int((~images.isfinite()).sum())
    if bad:
        raise ArgumentError(f"{bad} of the images' {images.numel()} values are not finite")
    H, W = images.shape[-2:]
    if H % MULTIPLE or W % MULTIPLE:
        raise ArgumentError(f"a detector's images have sides of multiples of {MULTIPLE}, got {H}x{W}; see fit_pictures")
    if sizes is None:
        return [ImageSize(H, W, H, W)] * len(images)
    found = []
    for size in several("sizes", sizes):
        values = tuple(size) if isinstance(size, tuple | list) else ()
        if len(values) != 4 or not all(type(value) is int and 0 < value <= LARGEST_PICTURE for value in values):
            raise ArgumentError(
                f"a size is an ImageSize of four whole numbers from 1 to {LARGEST_PICTURE}, got {shown(repr(size))}"
            )
        found.append(ImageSize(*values))
        if found[-1].height > H or found[-1].width > W:
            raise ArgumentError(f"a picture of {values[0]}x{values[1]} is not in an image of {H}x{W}")
    if len(found) != len(images):
        raise ArgumentError(f"{len(found)} sizes for {len(images)} images; give one each")
    return found
