"""A detector's networks rewritten for inference, as network.py does it for the Conformer.

Regions of interest are pixels of one row to the box head, whose layers are then 1x1 convolutions. The mask head's
transposed convolution is a 1x1 one to four pixels' channels. What leaves a network together is one product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.detector.config import BOX_SIDE, LEVELS, MASK_SIDE
from ..model.detector.parts import BoxHead, MaskHead, Proposer
from ..model.detector.reference import Detector
from . import ops
from .base import InferenceNetwork
from .network import InferenceConformer
from .weights import Weights

REGIONS, MASKS = "regions.pixels", "masks.map"
EVEN = 16


def parts_of(detector: Detector) -> dict[str, Proposer | BoxHead | MaskHead]:
    """The parts that are networks, by the names that a Quantization has before their products'."""
    head = detector.roi_head
    found: dict[str, Any] = {"proposer": detector.proposer, "boxes": head.bbox_head, "masks": head.mask_head}
    return {name: part for name, part in found.items() if part is not None}


def proposed_names() -> tuple[str, ...]:
    """The outputs of InferenceProposer: the maps, then what the region proposal network makes of each."""
    return tuple(f"{kind}{level}.pixels" for kind in ("", "regions.") for level in range(LEVELS))


def outputs_of(part: str) -> tuple[str, ...]:
    """What the network of a part returns."""
    return {"proposer": proposed_names(), "boxes": (REGIONS,), "masks": (MASKS,)}[part]


class InferenceProposer(InferenceNetwork):
    """images (B, 3, H, W), H and W multiples of 32 -> "0.pixels" to "4.pixels" (B, H', W', K) and "regions.0.pixels" to
    "regions.4.pixels" (B, H', W', 3 + 12), see model.detector.parts.Proposed."""

    def __init__(self, model: Proposer) -> None:
        super().__init__()
        self.config, self.outputs = model.config, proposed_names()
        blocks = model.config.backbone.feature_blocks
        self.backbone = InferenceConformer(model.backbone).with_outputs([f"{block}.map" for block in blocks])
        self.lateral: Any = nn.ModuleList(map(_of, model.neck.lateral_convs))
        self.pyramid: Any = nn.ModuleList(map(_of, model.neck.fpn_convs))
        self.hidden = _of(model.rpn_head.rpn_conv)
        self.regions = _joint(model.rpn_head.rpn_cls, model.rpn_head.rpn_reg)

    @property
    def second_dimension(self) -> int:
        return self.backbone.second_dimension

    @property
    def output_names(self) -> tuple[str, ...]:
        return proposed_names()

    @property
    def last_products(self) -> tuple[str, ...]:
        return ("regions",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        *finer, coarsest = (feature_map.permute(0, 2, 3, 1) for feature_map in self.backbone(images))
        laterals = [*self.lateral]
        last = laterals.pop()
        merged = [ops.conv1x1(coarsest, *last(), relu=False, **last.scales())]
        while finer:
            step = laterals.pop()
            merged.append(ops.lateral(finer.pop(), *step(), merged[-1], **step.scales()))
        maps = [
            ops.conv3x3(feature_map, *conv(), relu=False, **conv.scales())
            for feature_map, conv in zip(reversed(merged), self.pyramid, strict=True)
        ]
        maps.append(ops.every_second(maps[-1]))
        found = [*maps, *map(self._regions, maps)]
        by_name = dict(zip(proposed_names(), found, strict=True))
        return tuple(by_name[name] for name in self.outputs)

    def _regions(self, feature_map: Tensor) -> Tensor:
        hidden = ops.conv3x3(feature_map, *self.hidden(), **self.hidden.scales())
        return ops.conv1x1(hidden, *self.regions(), relu=False)


class InferenceBoxHead(InferenceNetwork):
    """A region is a pixel of a row: (1, 1, R, 7 * 7 * K), a place's channels together, -> "regions.pixels"
    (1, 1, R, classes + 1 + classes * 4), logits, then deltas, and zeros up to a multiple of EVEN values: a kernel
    writes rows of other lengths piece by piece."""

    outputs = output_names = (REGIONS,)
    last_products = ("regions",)
    channels_last, second_dimension = True, 1

    def __init__(self, model: BoxHead) -> None:
        super().__init__()
        self.config = model.config
        layers: list[Any] = [*model.shared_fcs]
        first, *others = layers
        by_place = first.weight.unflatten(1, (-1, BOX_SIDE, BOX_SIDE)).permute(0, 2, 3, 1).flatten(1)
        self.hidden: Any = nn.ModuleList([Weights(by_place, first.bias), *map(_of, others)])
        joint = _joint(model.fc_cls, model.fc_reg)
        spare = -len(joint.bias) % EVEN
        self.regions = Weights(F.pad(joint.weight, (0, 0, 0, spare)), F.pad(joint.bias, (0, spare)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = images
        for layer in self.hidden:
            features = ops.conv1x1(features, *layer(), **layer.scales())
        return (ops.conv1x1(features, *self.regions(), relu=False),)


def split_regions(values: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """What the network of the box head returns of R regions, (R, ...), as BoxHead: logits and deltas."""
    return values[:, : classes + 1], values[:, classes + 1 : 5 * classes + 1].contiguous()


class InferenceMaskHead(InferenceNetwork):
    """(R, 14, 14, K) -> "masks.map" (R, classes, 28, 28), logits."""

    outputs = output_names = (MASKS,)
    last_products = ("masks",)
    channels_last, second_dimension = True, MASK_SIDE

    def __init__(self, model: MaskHead) -> None:
        super().__init__()
        self.config = model.config
        self.convs: Any = nn.ModuleList(map(_of, model.convs))
        up = model.upsample
        assert up.bias is not None
        self.up = Weights(up.weight.permute(2, 3, 1, 0).flatten(0, 2), up.bias.repeat(4))  # (2 * 2 * K, K)
        self.masks = _of(model.conv_logits)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = images
        for conv in self.convs:
            features = ops.conv3x3(features, *conv(), **conv.scales())
        features = ops.unfolded(ops.conv1x1(features, *self.up(), **self.up.scales()))
        return (ops.conv1x1(features, *self.masks(), relu=False).permute(0, 3, 1, 2),)


def _of(layer: Any) -> Weights:
    """Of a convolution or a matrix product; that of a 1x1 convolution is a matrix too."""
    layer = getattr(layer, "conv", layer)
    weight = layer.weight.flatten(1) if layer.weight.shape[2:] == (1, 1) else layer.weight
    return Weights(weight, layer.bias)


def _joint(logits: Any, deltas: Any) -> Weights:
    """Two products of the same input as one."""
    weights = [layer.weight.flatten(1) for layer in (logits, deltas)]
    return Weights(torch.cat(weights), torch.cat([logits.bias, deltas.bias]))
