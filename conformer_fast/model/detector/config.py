"""The sizes and test settings of a detector (arXiv 2105.03889, section 4.3; the official detection fork)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ArgumentError, ArgumentTypeError, one_of, shown, truth, whole
from ..config import ConformerConfig, get_config

DETECTORS = {"mask-rcnn": True, "faster-rcnn": False}  # by name: whether it has masks
COCO_CLASSES = 80
LEVELS = 5  # maps of the pyramid
RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors at a pixel
ANCHOR_SCALE = 8  # side of a square anchor / the stride of its map
BOX_SIDE, MASK_SIDE = 7, 14  # pixels of what the heads read of a region
LONG_EDGE, SHORT_EDGE = 1344, 800  # pixels that neither edge of a picture exceeds
MULTIPLE = 32  # of pixels, to which images are padded: the stride of the last map of the backbone
MOST = {"num_classes": 65536, "channels": 65536, "hidden": 65536, "proposals": 10_000, "detections": 10_000}


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of one detector. Raises ArgumentError when they cannot be.

    backbone:    the Conformer's
    masks:       Mask R-CNN; without them Faster R-CNN
    num_classes: of objects; the background is one more
    channels:    of the pyramid's maps and of the mask head
    hidden:      of the box head's two layers
    proposals:   regions of an image that the box head reads, at most; and of each map before overlaps are removed
    min_score:   that a detection has more of
    detections:  of an image, at most
    """

    backbone: ConformerConfig
    masks: bool = True
    num_classes: int = COCO_CLASSES
    channels: int = 256
    hidden: int = 1024
    proposals: int = 1000
    min_score: float = 0.05
    detections: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, ConformerConfig):
            raise ArgumentTypeError(f"backbone must be a ConformerConfig, got {shown(repr(self.backbone))}")
        truth("masks", self.masks)
        for name, most in MOST.items():
            if whole(name, getattr(self, name)) > most:
                raise ArgumentError(f"DetectorConfig: {name} must be at most {most}, got {getattr(self, name)}")
        if not isinstance(self.min_score, float) or not 0 <= self.min_score < 1:
            raise ArgumentError(
                f"DetectorConfig: min_score must be a float from 0.0 to below 1.0, got {shown(repr(self.min_score))}"
            )
        if self.backbone.patch_size > MULTIPLE or len(self.backbone.feature_blocks) != LEVELS - 1:
            raise ArgumentError(
                f"a detector needs four maps of strides 4 to {MULTIPLE} and images of whole patches; this backbone has "
                f"depth {self.backbone.depth}, patches of {self.backbone.patch_size} pixels"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per pixel of each of the pyramid's maps."""
        return tuple(4 << level for level in range(LEVELS))


def edges_for(size: int | None) -> tuple[int, int]:
    """Pixels that the long and the short edge of pictures are resized to, whichever is reached first: both to the
    recipe's size, if it has one."""
    return (size, size) if size else (LONG_EDGE, SHORT_EDGE)


PACKAGED = DetectorConfig(
    # Trained by examples/train_detector.py; its weights ship with the package. Every part of a published detector.
    ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=4, depth=6, mlp_ratio=2),
    num_classes=10,
    channels=32,
    hidden=128,
    proposals=100,
    detections=30,
)


def detector_config(
    name: str | DetectorConfig, variant: str | ConformerConfig | None = None, num_classes: int | None = None
) -> DetectorConfig:
    """The configuration called "mask-rcnn" or "faster-rcnn" on this backbone, small-p32 by default, or `name` itself.

    Raises ArgumentError, with the names there are, when there is none, and for what a configuration says already.
    """
    if isinstance(name, DetectorConfig):
        if variant is not None or num_classes is not None:
            raise ArgumentError("a DetectorConfig has its backbone and classes; leave out variant and num_classes")
        return name
    one_of("detector", name, DETECTORS)
    classes = COCO_CLASSES if num_classes is None else num_classes
    return DetectorConfig(get_config(variant or "small-p32"), DETECTORS[name], classes)
