"""create_detector(): the reference detector with somebody's weights in it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace

import torch

from ..errors import ArgumentError, CheckpointError, a_path, shown
from ..model.blank import in_memory, outline_of
from ..model.config import ConformerConfig
from ..model.detector.config import PACKAGED, DetectorConfig, detector_config
from ..model.detector.reference import Detector
from ..model.forked import before_computing
from .dialects import COUNTER, DETECTOR
from .reading import CLASSES, Checkpoint, read_detector
from .weights import DATA, check_coverage, checked_values

HIDDEN, PYRAMID = "roi_head.bbox_head.shared_fcs.0.weight", "neck.lateral_convs.0.conv.weight"
MASK_HEAD = "roi_head.mask_head."


def create_detector(
    name: str | DetectorConfig | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    variant: str | ConformerConfig | None = None,
    num_classes: int | None = None,
) -> Detector:
    """The reference detector in eval mode.

    name:        "mask-rcnn", "faster-rcnn" or a configuration; None: what the weights are of
    weights:     the path of a checkpoint of the official detection fork, or of one with its names; "packaged" takes the
                 small one that ships with this package (digits scattered on textures); None leaves random values
    variant:     of the backbone that a name is of, or its configuration; default: small-p32
    num_classes: of objects, for a name; default: what the weights file holds, else COCO's 80

    Its `recipe` is what the file says of itself.

    Raises ArgumentError for an unknown name, CheckpointError for weights that do not fit: each of the detector's
    tensors must be there, and no other.
    """
    before_computing()
    if name is None and (variant is not None or num_classes is not None):
        raise ArgumentError("variant and num_classes are for a detector's name; give 'mask-rcnn' or 'faster-rcnn'")
    if weights is None:
        return Detector(detector_config(name or "mask-rcnn", variant, num_classes)).eval()
    if weights == "pretrained":
        raise CheckpointError("no detector can be downloaded; pass a checkpoint's path, or 'packaged'")
    if weights == "packaged":
        if name not in (None, PACKAGED):
            raise CheckpointError("the packaged detector has sizes of its own; leave its name out")
        name, weights = PACKAGED, DATA / "scattered_digits.safetensors"
    if not a_path("the checkpoint", weights).exists():
        raise CheckpointError(f"{shown(weights)}: no such file; pass a detector's checkpoint, or 'packaged'")
    checkpoint = read_detector(weights)
    try:
        return _filled(name, checkpoint, variant, num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from None


def config_of(checkpoint: Checkpoint, num_heads: int | None = None) -> DetectorConfig:
    """A detector's sizes, read from the shapes of its tensors; num_heads: of its attention, if it is known.

    Raises CheckpointError if it is none.
    """
    state = checkpoint.state
    rows = {}
    for name in (CLASSES, HIDDEN, PYRAMID):
        if name not in state or not state[name].ndim:
            raise CheckpointError(f"no detector's weights: {_instead(checkpoint)}")
        rows[name] = state[name].shape[0]
    try:
        return DetectorConfig(
            checkpoint.found.config(num_heads or checkpoint.recipe.num_heads),
            masks=any(name.startswith(MASK_HEAD) for name in state),
            num_classes=rows[CLASSES] - 1,
            channels=rows[PYRAMID],
            hidden=rows[HIDDEN],
        )
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's sizes are not a detector's: {error}") from error


def _instead(checkpoint: Checkpoint) -> str:
    if any(name.startswith(DETECTOR) for name in checkpoint.state):
        return f"{CLASSES}, {HIDDEN} or {PYRAMID} is missing"
    return "it holds a Conformer alone, without neck, rpn_head and roi_head; create_model loads that"


def _filled(
    name: str | DetectorConfig | None,
    checkpoint: Checkpoint,
    variant: str | ConformerConfig | None,
    num_classes: int | None,
) -> Detector:
    if name is None:
        config = implied = config_of(checkpoint)
    else:
        asked = detector_config(name, variant, num_classes)
        implied = config_of(checkpoint, num_heads=1)
        named = isinstance(name, str) and num_classes is None
        config = replace(asked, num_classes=implied.num_classes) if named else asked
    detector = outline_of(lambda: Detector(config))
    values = {name: tensor for name, tensor in checkpoint.state.items() if not name.endswith(COUNTER)}
    check_coverage("mmdetection", values, detector, lambda: _differences(implied, config))
    detector = in_memory(detector, torch.device("cpu"))
    parameters = detector.state_dict()
    with torch.no_grad():
        for key, tensor in values.items():
            parameters[key].copy_(checked_values(key, tensor, parameters[key].dtype))
    try:
        checkpoint.recipe.check(replace(config.backbone, num_classes=config.num_classes))
    except ArgumentError as error:
        raise CheckpointError(str(error)) from error
    detector.recipe = checkpoint.recipe
    return detector.eval()


def _differences(found: DetectorConfig, asked: DetectorConfig) -> list[str]:
    """In words, for an error: the sizes of the file where they differ from what was asked for."""
    theirs, ours = asdict(found), asdict(asked)
    sizes = theirs.pop("backbone"), ours.pop("backbone")
    pairs = [*zip(theirs.items(), ours.values(), strict=True), *zip(sizes[0].items(), sizes[1].values(), strict=True)]
    return [
        f"the file has {name}={value}, the detector {name}={other}"
        for (name, value), other in pairs
        if value != other and name not in ("num_heads", "num_classes", "min_score", "detections", "proposals")
    ]
