"""The parts of a detector that are networks. Parameter names are those of the official detection fork."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reference import Conformer
from .config import BOX_SIDE, LEVELS, RATIOS, DetectorConfig

MASK_CONVOLUTIONS = 4


class Proposed(NamedTuple):
    """maps: the pyramid's, (B, channels, H, W), fine to coarse. regions: of each map what the region proposal network
    makes of it, (B, 3 + 12, H, W): the logits of three anchors at each pixel, then the four deltas of each."""

    maps: tuple[Tensor, ...]
    regions: tuple[Tensor, ...]


class ConvModule(nn.Module):
    """A convolution, under the name that the fork gives it."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.conv(feature_map)


class FPN(nn.Module):
    """Feature pyramid (arXiv 1612.03144): four maps of strides 4 to 32 -> five of strides 4 to 64, of `channels`."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        backbone, channels = config.backbone, config.channels
        self.lateral_convs = nn.ModuleList(
            ConvModule(backbone.map_channels(block), channels, 1) for block in backbone.feature_blocks
        )
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in backbone.feature_blocks)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lateral = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, maps, strict=True)]
        for level in range(len(lateral) - 1, 0, -1):
            lateral[level - 1] = lateral[level - 1] + F.interpolate(lateral[level], scale_factor=2)  # nearest
        out = [conv(feature_map) for conv, feature_map in zip(self.fpn_convs, lateral, strict=True)]
        return (*out, out[-1][:, :, ::2, ::2])


class RPNHead(nn.Module):
    """Region proposal network (arXiv 1506.01497), the same for each map. (B, K, H, W) -> (B, 3 + 12, H, W)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(config.channels, len(RATIOS), 1)
        self.rpn_reg = nn.Conv2d(config.channels, 4 * len(RATIOS), 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        hidden = F.relu(self.rpn_conv(feature_map))
        return torch.cat([self.rpn_cls(hidden), self.rpn_reg(hidden)], 1)


class BoxHead(nn.Module):
    """What a region's box is. (R, K, 7, 7) -> logits (R, classes + 1), the last of the background, and deltas
    (R, classes * 4)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(config.channels * BOX_SIDE**2, config.hidden), nn.Linear(config.hidden, config.hidden)]
        )
        self.fc_cls = nn.Linear(config.hidden, config.num_classes + 1)
        self.fc_reg = nn.Linear(config.hidden, 4 * config.num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = features.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        return self.fc_cls(hidden), self.fc_reg(hidden)


class MaskHead(nn.Module):
    """What a region's mask is, for each class. (R, K, 14, 14) -> logits (R, classes, 28, 28)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleList(ConvModule(config.channels, config.channels, 3) for _ in range(MASK_CONVOLUTIONS))
        self.upsample = nn.ConvTranspose2d(config.channels, config.channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(config.channels, config.num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        for conv in self.convs:
            features = F.relu(conv(features))
        return self.conv_logits(F.relu(self.upsample(features)))


class RoIHead(nn.Module):
    """The two heads; `mask_head` is None without masks."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.bbox_head = BoxHead(config)
        self.mask_head = MaskHead(config) if config.masks else None


class Proposer(nn.Module):
    """All that is computed once for an image. images (B, 3, H, W), H and W multiples of 32 -> Proposed.

    size: that pictures are fitted to, of the detector's recipe
    """

    def __init__(
        self, config: DetectorConfig, backbone: Conformer, neck: FPN, rpn_head: RPNHead, size: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.size = config, size
        self.backbone, self.neck, self.rpn_head = backbone, neck, rpn_head

    def forward(self, images: Tensor) -> Proposed:
        maps = self.neck(self.backbone.forward_features(images).maps)
        assert len(maps) == LEVELS
        return Proposed(maps, tuple(self.rpn_head(feature_map) for feature_map in maps))
