"""compile(): from any Conformer, or a detector on one, to the fastest verified one on this machine."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import nn

from ..calibration.calibrate import Images
from ..calibration.resolve import resolve, resolve_detector
from ..checkpoints.adopt import Model, adopt
from ..engines.base import Backend, Settings
from ..engines.module import EngineModule
from ..engines.registry import choose, choose_for
from ..errors import ArgumentTypeError, BackendError, shown
from ..inference.quantization import Quantization
from ..model.detector.reference import Detector
from .fast_conformer import FastConformer, compiled
from .fast_detector import FastDetector, compiled_detector, own_copy
from .save import on_device


@overload
def compile(
    model: Detector,
    *,
    backend: str | Backend = "auto",
    precision: str = "auto",
    device: str | torch.device | None = None,
    quantization: Quantization | Images | None = None,
    **options: Any,
) -> FastDetector: ...


@overload
def compile(
    model: Model,
    *,
    backend: str | Backend = "auto",
    precision: str = "auto",
    device: str | torch.device | None = None,
    quantization: Quantization | Images | None = None,
    **options: Any,
) -> FastConformer: ...


def compile(
    model: Model | Detector,
    *,
    backend: str | Backend = "auto",
    precision: str = "auto",
    device: str | torch.device | None = None,
    quantization: Quantization | Images | None = None,
    **options: Any,
) -> FastConformer | FastDetector:
    """A fast model that returns what `model` returns.

    model:     a reference Conformer, the official repository's Conformer, an mmpretrain ImageClassifier or Conformer
               backbone, mmdetection's backbone, a state dict, or a checkpoint's path; or a Detector. It is not changed.
    backend:   "auto" (the first of these that can run here), "triton" (CUDA), "native" (CPU; for "int8" and
               Conformers alone), "openvino" (CPU), "reference"; or "tensorrt" (CUDA), which is built for certain
               shapes; or one of their classes with its options, as TensorRT(shapes=Shapes(...))
    precision: "auto" (the fastest of the following that this hardware has: a CPU that lists "bf16" is measured, once,
               in less than a second), "fp32", "bf16" or, on a GPU or a CPU that lists it, "fp16". Products of fp32 are
               exact, unless torch.set_float32_matmul_precision allows TF32 to them. With a `quantization`, "int8" or,
               on newer GPUs, "fp8": products in 8 bits, the rest in what "auto" takes, on a GPU in 16 bits.
    device:    where images will be and results are, such as "cpu" or "cuda:1"; default: of a model on a GPU that GPU,
               else where the backend runs: the CPU or the current GPU
    quantization: for 8 bits, what `conformer_fast.calibrate` returned, or the images that it is to measure: batches (B,
               in_channels, H, W), normalized, or a folder's path
    options:   of the backend that `backend` names: threads= of "native" and "openvino", tune= of "triton", shapes= and
               flavor= of "tensorrt"

    The engine for an image size is built at the first call with that size and then kept: by "openvino" in memory and on
    disk, one for all sizes after the first four; on a GPU as a CUDA graph for that size and for batches up to the next
    of 1, 2, 4, 8, 10, 12, ... images. Its memory is planned once, and all compiled models on a GPU share it. A batch
    for which the GPU lacks memory raises GPUMemoryError, a torch.OutOfMemoryError; smaller ones still run. A TensorRT
    engine is built at once, for its shapes, and kept on disk. "native" has one engine for all sizes.

    Raises BackendError when the backend, precision, device or an option cannot be had here; CheckpointError or
    ArgumentError when `model` is not a Conformer or is in training mode; ArgumentError when only one of an 8-bit
    precision and its quantization is given, or they do not fit; EngineError when TensorRT fails.
    """
    if isinstance(model, EngineModule | FastDetector):
        raise ArgumentTypeError("the model is compiled already; give the one it was made from")
    if isinstance(model, Detector):
        return _detector(model, backend, precision, None if device is None else _device(device), quantization, options)
    place = _gpu_of(model) if device is None else _device(device)
    with on_device(place or "cpu"):
        kind = place.type if place else None
        choice = choose(backend, precision, options, kind)
        source = adopt(model)
        found, _ = resolve(source.reference, choice.precision, quantization)
        chosen, precision, reason = choose_for(source.reference, found, choice, backend, options, kind)
        settings = Settings(chosen.for_model(source.reference), precision, chosen.torch_device(), found)
    return compiled(source, settings, reason)


def _detector(
    model: Detector,
    backend: str | Backend,
    precision: str,
    place: torch.device | None,
    quantization: Quantization | Images | None,
    options: dict[str, Any],
) -> FastDetector:
    with on_device(place or "cpu"):
        chosen, precision, reason = choose(backend, precision, options, place.type if place else None, detector=True)
        reference = own_copy(model)
        found, _ = resolve_detector(reference, precision, quantization)
        settings = Settings(chosen, precision, chosen.torch_device(), found)
    return compiled_detector(reference, settings, reason)


def _device(asked: str | torch.device) -> torch.device:
    """Raises BackendError for a device that is not here."""
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise BackendError(f"device must be such as 'cpu' or 'cuda:1', got {shown(repr(asked))}") from error
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        raise BackendError(f"there is no device {str(device)!r} here: PyTorch sees {torch.cuda.device_count()} GPUs")
    return device


def _gpu_of(model: Model) -> torch.device | None:
    """The GPU that a module is on."""
    if isinstance(model, nn.Module):
        return next((parameter.device for parameter in model.parameters() if parameter.is_cuda), None)
    return None
