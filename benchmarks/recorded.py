"""The calls of operators that an inference model makes, recorded without data: for compiling and counting them."""

from __future__ import annotations

from functools import cache

import torch

from conformer_fast.inference import ops
from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.detector import outputs_of, parts_of
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization, addend_of, usually_stored
from conformer_fast.kernels import dispatch, launch
from conformer_fast.model.blank import outline, outline_of
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.detector.config import BOX_SIDE, LONG_EDGE, MASK_SIDE, SHORT_EDGE, detector_config
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.precision import DTYPES

IMAGE = 224
DETECTOR = "mask-rcnn"  # among the variants: its networks, at COCO's size


def usual(model: InferenceNetwork, precision: str) -> Quantization:
    """What `calibrate` would put in 8 bits, with ranges that fit values near 1."""
    names = [name for name in model.quantizable if usually_stored(name.removeprefix("backbone."), precision)]
    added = [addend_of(name) for name in names if name.endswith(".conv3")]
    return Quantization(precision, dict.fromkeys((*names, *added), 4.0))


def recorded_calls(
    config: ConformerConfig,
    batch: int,
    precision: str = "fp16",
    outputs: tuple[str, ...] = LOGITS,
    stored: str | None = None,
    size: int | None = None,
) -> list[dispatch.Call]:
    """Every call for a batch of images, in order, on tensors of the device "meta".

    precision: "fp32", "bf16" or "fp16"
    stored:    "int8" or "fp8" for the products that `calibrate` puts in 8 bits
    size:      pixels a side; None: IMAGE
    """
    size = size or IMAGE
    images = torch.empty(batch, config.in_channels, size, size, dtype=DTYPES[precision], device="meta")
    model = _model(config, precision, outputs, stored)
    with torch.no_grad(), ops.on_kernels(), dispatch.calls() as made, launch.recording():
        model(images)
    return made


@cache
def _model(config: ConformerConfig, precision: str, outputs: tuple[str, ...], stored: str | None) -> InferenceConformer:
    reference = outline(config).eval()
    with torch.device("meta"):
        quantization = usual(lower(reference, outputs), stored) if stored else None
        return lower(reference, outputs, precision, quantization)


def detector_calls(precision: str = "fp16", stored: str | None = None) -> list[dispatch.Call]:
    """The same of Mask R-CNN's networks on small-p32, for one image of COCO with all proposals and detections."""
    config = detector_config(DETECTOR)
    head = config.channels
    inputs = {
        "proposer": (1, 3, SHORT_EDGE, LONG_EDGE),
        "boxes": (1, 1, config.proposals, head * BOX_SIDE**2),
        "masks": (config.detections, MASK_SIDE, MASK_SIDE, head),
    }
    parts = parts_of(outline_of(lambda: Detector(config)).eval())
    with torch.no_grad(), torch.device("meta"), dispatch.calls() as made, launch.recording():
        for name, part in parts.items():
            quantization = usual(lower(part), stored) if stored else None
            network = lower(part, outputs_of(name), precision, quantization)
            with ops.on_kernels():
                network(torch.empty(inputs[name], dtype=DTYPES[precision]))
    return made
