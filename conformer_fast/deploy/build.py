"""build(): from any Conformer or Detector to a bundle, for other machines too. TensorRT-RTX needs no GPU for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..bundles.folder import check_writable
from ..calibration.calibrate import Images
from ..calibration.resolve import resolve, resolve_detector
from ..checkpoints.adopt import Model, adopt
from ..engines.base import Backend, Settings
from ..engines.registry import AHEAD, given
from ..errors import ArgumentError, one_of
from ..inference.quantization import Quantization
from ..model.detector.reference import Detector
from ..model.names import PRECISIONS
from ..model.outputs import check_outputs, names_of
from .fast_detector import own_copy
from .save import call, check_labels, check_settings, save
from .save_detector import save_detector


def build(
    model: Model | Detector,
    folder: str | os.PathLike[str],
    *,
    backend: str | Backend = AHEAD,
    precision: str = "fp16",
    outputs: Sequence[str] | None = None,
    quantization: Quantization | Images | None = None,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
    rebuild: str | None = None,
    **options: Any,
) -> Path:
    """Builds an engine of `model` and writes it as a bundle, which `conformer_fast.load` runs.

    model:        what `compile` takes, also a Detector. It is not changed.
    folder:       of the bundle; an earlier bundle there is replaced
    backend:      "tensorrt", or its class with options, as TensorRT(shapes=Shapes(...), targets=["sm89"])
    precision:    "fp16", "bf16", "fp32", or "int8" or "fp8" for the products of stem and branches, with fp16 around
    outputs:      names of InferenceConformer.outputs, such as ["logits"]; default: what the model returns
    quantization: for "int8" and "fp8", what `calibrate` returned, or the images that it is to measure: batches (B,
                  in_channels, H, W), normalized, or a folder's path
    key:          signs the bundle, as in FastConformer.save
    labels:       the classes' names, in order; default: those of the model's recipe, else ImageNet's for 1000 classes,
                  else "class 0", ...
    rebuild:      the command to name when the engine does not fit a machine; default: this call, for the GPU there
    options:      of the backend that `backend` names: shapes=, targets= and flavor= (TensorRT)

    The manifest's "measured" has the error of the engine's graph, run by ONNX Runtime where that is installed, against
    the reference, on the first of the quantization's images or else on noise.

    Returns the bundle's folder. Raises BackendError for what the backend cannot do, EngineError when it fails,
    BundleError when the bundle cannot be written, ArgumentError for options that do not fit together or the model, and
    for a precision whose range the model exceeds.
    """
    one_of("precision", precision, PRECISIONS)
    chosen = given(backend, options)
    check_settings(Settings(chosen, precision), isinstance(model, Detector))
    check_writable(folder, key)
    device = chosen.torch_device() if torch.cuda.is_available() else chosen.device_type
    if isinstance(model, Detector):
        if outputs is not None:
            raise ArgumentError("outputs are of Conformers; a detector returns its detections, so leave them out")
        detector = own_copy(model)
        found, images = resolve_detector(detector, precision, quantization)
        settings = Settings(chosen, precision, device, found)
        again = call(f"conformer_fast.build(detector, {Path(folder).absolute().name!r}", settings) + ")"
        return save_detector(
            folder, detector, settings, rebuild_with=rebuild or again, labels=labels, key=key, images=images
        )
    source = adopt(model)
    check_labels(labels, source.reference.config)
    if outputs is not None:
        names = check_outputs(outputs, names_of(source.reference))
        source = replace(source, outputs=names, structure=names[0] if len(names) == 1 else list(names))
    chosen = chosen.for_model(source.reference)
    found, images = resolve(source.reference, precision, quantization)
    settings = Settings(chosen, precision, device, found)
    more = {} if outputs is None else {"outputs": list(outputs)}
    again = call(f"conformer_fast.build(model, {Path(folder).absolute().name!r}", settings, **more) + ")"
    return save(folder, source, settings, rebuild_with=rebuild or again, labels=labels, key=key, images=images)
