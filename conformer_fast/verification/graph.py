"""How far an ONNX graph is from the reference."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from ..inference.network import InferenceConformer
from ..model.distance import relative_error
from ..model.outputs import LOGITS, SUM, reference_outputs
from ..model.reference import Conformer
from ..model.shapes import Shapes


def _noise(model: InferenceConformer, profile: Shapes) -> Tensor:
    shape = 2, model.config.in_channels, profile.height[1], profile.width[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _measured(
    onnx: bytes, reference: Conformer, names: tuple[str, ...], images: Tensor, calibrated: bool
) -> dict[str, Any] | None:
    """How far the graph is from the reference, by ONNX Runtime; None where that cannot run it.

    Raises ValueError when a value of the graph's is not finite.
    """
    from ..engines.onnx.runtime import run_graph

    try:
        found = run_graph(onnx, images, names)
    except BackendError:  # it is not installed, or has no bf16
        return None
    with torch.no_grad():
        exact = reference_outputs(reference, images, names)
    bad = [name for name, value in zip(names, found, strict=True) if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"{bad[0]} of the typed graph is NaN or infinite: the model exceeds the precision's range; "
            f"use bf16 or fp32, or check the weights"
        )
    errors = {name: relative_error(*pair) for name, *pair in zip(names, found, exact, strict=True)}
    scores = [index for index, name in enumerate(names) if name in (*LOGITS, SUM)]
    agreement = None
    if scores:
        ours, true = (torch.stack([values[index] for index in scores]).sum(0).argmax(-1) for values in (found, exact))
        agreement = (ours == true).double().mean().item()
    return {
        "by": f"ONNX Runtime {version('onnxruntime')}, of the engine's graph",
        "images": f"{len(images)} {'of the calibration' if calibrated else 'of noise'}",
        "error": errors,
        "top1_agreement": agreement,
        "accuracy": None,
    }
