"""The calls of operators that an inference model makes, recorded without data: for compiling and counting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from conformer_fast import ops
from conformer_fast.config import ConformerConfig
from conformer_fast.fuse import LOGITS, fuse
from conformer_fast.kernels import _launch, dispatch
from conformer_fast.model import Conformer
from conformer_fast.quantization import Quantization, addend_of

IMAGE = 224


def recorded_calls(
    config: ConformerConfig,
    batch: int,
    dtype: torch.dtype = torch.float16,
    outputs: Sequence[str] = LOGITS,
    stored: str | None = None,
) -> list[dispatch.Call]:
    """Every call for a batch of 224x224 images, in order, on tensors of the device "meta".

    stored: "int8" or "fp8" for all products that can be in 8 bits
    """
    with torch.device("meta"):
        model = fuse(Conformer(config).eval()).with_outputs(outputs).in_precision(dtype)
        if stored:
            added = [addend_of(name) for name in model.quantisable if name.endswith(".conv3")]
            model = model.quantized(Quantization(stored, dict.fromkeys((*model.quantisable, *added), 1.0)))
        images = torch.empty(batch, config.in_channels, IMAGE, IMAGE, dtype=dtype)
    with torch.no_grad(), ops.on_kernels(), dispatch.calls() as made, _launch.recording():
        model(images)
    return made
