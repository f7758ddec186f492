"""How far an ONNX graph is from the reference: what a bundle says of an engine that cannot run where it is built."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, BackendError
from ..model.distance import relative_error, top1_agreement
from ..model.outputs import LOGITS, SUM, reference_outputs
from ..model.reference import Conformer
from ..model.shapes import Shapes


def graph_error(
    graph: bytes, reference: Conformer, outputs: Sequence[str], shapes: Shapes, images: Tensor | None = None
) -> dict[str, Any] | None:
    """The manifest's "measured": error of each output and top-1 agreement, by ONNX Runtime; None where that cannot run.

    images: (B, in_channels, H, W) of the calibration, on the CPU; None: two of noise, of the size that `shapes` is
            tuned for

    Raises ArgumentError when a value of the graph's is not finite.
    """
    from ..engines.onnx.runtime import run_graph

    source = "noise" if images is None else "calibration"
    if images is None:
        size = 2, reference.config.in_channels, shapes.height[1], shapes.width[1]
        images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    try:
        found = run_graph(graph, images, outputs)
    except BackendError:  # it is not installed, or has no bf16
        return None
    with torch.no_grad():
        exact = reference_outputs(reference, images, outputs)
    bad = [name for name, value in zip(outputs, found, strict=True) if not value.isfinite().all()]
    if bad:
        raise ArgumentError(
            f"{bad[0]} of the typed graph is NaN or infinite: the model exceeds the precision's range; "
            f"use bf16 or fp32, or check the weights"
        )
    scores = [index for index, name in enumerate(outputs) if name in (*LOGITS, SUM)]
    agreement = None
    if scores:
        ours, true = (torch.stack([values[index] for index in scores]).sum(0) for values in (found, exact))
        agreement = top1_agreement(ours, true)
    return {
        "runtime": {"name": "onnxruntime", "version": version("onnxruntime")},
        "images": len(images),
        "source": source,
        "error": {name: relative_error(*pair) for name, *pair in zip(outputs, found, exact, strict=True)},
        "top1_agreement": agreement,
        "accuracy": None,
    }
