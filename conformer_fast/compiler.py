"""compile(): from any Conformer to the fastest verified one on this machine."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from .backends import DTYPES, BackendError, Settings, choose
from .cuda_graph import CUDAGraphEngine
from .fuse import fuse
from .model import Conformer, check_image_size
from .outputs import COUPLING, observed_outputs, reference_outputs
from .source import Model, Source, load_source, rebuild

if TYPE_CHECKING:
    from .verify import Report

Engine = Callable[[Tensor], tuple[Tensor, ...]]


def compile(
    model: Model,
    *,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tune: bool = False,
) -> CompiledConformer:
    """A fast model that returns what `model` returns.

    model:     a reference Conformer, the official repository's Conformer, an mmpretrain ImageClassifier or Conformer
               backbone, mmdetection's backbone, a state dict, or a checkpoint's path. It is not changed.
    backend:   "auto" (the first of these that can run here), "triton" (CUDA), "openvino" (CPU) or "reference"
    precision: "auto" (the fastest that this hardware has), "fp32", "bf16" or, on a GPU, "fp16". Products of fp32 are
               exact, unless torch.set_float32_matmul_precision allows TF32 to them.
    threads:   CPU cores to use; default: as many as PyTorch uses
    tune:      on CUDA, measure at the first call with a new shape which tile, or PyTorch, is fastest for each kernel.
               It takes minutes; the result is kept for later programs, as that of `conformer-fast tune` is.

    On CUDA it runs on the GPU that `model` is on, else on the current one; images must be on that GPU, results are.

    The engine for an image size is built at the first call with that size and then kept: on the CPU in memory and on
    disk; on a GPU as a CUDA graph for that size and for batches up to the next of 1, 2, 4, 8, 10, 12, ... images. Its
    memory is planned once, and all compiled models on a GPU share it. A batch for which the GPU lacks memory raises
    torch.OutOfMemoryError; smaller ones still run.

    Raises BackendError when the backend or precision cannot be had here, or cannot be tuned; CheckpointError or
    ValueError when `model` is not a Conformer or is in training mode.
    """
    if isinstance(model, CompiledConformer):
        raise TypeError("compile: the model is compiled already; give the one it was made from")
    with _on_device_of(model):
        settings, reason = choose(backend, precision, threads)
    if tune and settings.backend != "triton":
        raise BackendError(f"only the backend 'triton' can be tuned, this is {reason}")
    return CompiledConformer(load_source(model), replace(settings, tune=tune), reason)


class CompiledConformer(nn.Module):
    """images (B, in_channels, H, W) on `device` -> what the compiled model's own forward returns, in fp32.

    Images are floating point and normalised, or uint8: the pixels of RGB pictures, which are then normalised as
    conformer_fast.preprocess does it. On a GPU they are not searched for NaN: the host would have to wait for it.

    Safe to call from several threads. `settings` and `reason` tell how it runs. It has no parameters and never trains.
    """

    def __init__(self, source: Source, settings: Settings, reason: str) -> None:
        super().__init__()
        self.settings, self.reason = settings, reason
        self._source = source
        self._identity = _identity(source.reference) if settings.backend == "openvino" else {}
        self._engine = self.engine(source.outputs)
        self.eval()

    @property
    def reference(self) -> Conformer:
        """The model that defines what is correct here, in fp32 on the CPU."""
        return self._source.reference

    @property
    def device(self) -> torch.device:
        """Where its images must be, and its results are."""
        return torch.device(self.settings.device)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors it returns, in order (see InferenceConformer)."""
        return self._source.outputs

    def forward(self, images: Tensor) -> Any:
        return rebuild(self._source.structure, self.run(images))

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors called `outputs`, outside the structure that `forward` puts them in."""
        return self._engine(self.as_input(images))

    def as_input(self, images: Tensor) -> Tensor:
        """The images as an engine reads them, floating point. Raises what `check_images` raises."""
        check_images(images, self.reference, self.device)
        return images if images.is_floating_point() else _normalised(images)

    def verify(self, images: Tensor) -> Report:
        """Compares with the reference in float64, per head and per block; prints the report and returns it."""
        from .verify import verify

        report = verify(self, images)
        print(report)
        return report

    def engine(self, outputs: Sequence[str]) -> Engine:
        """An engine of this model's settings that returns these outputs (names of InferenceConformer.outputs)."""
        if self.settings.backend == "reference":
            return _ReferenceEngine(self.reference, outputs)
        if self.settings.backend == "triton":
            model = fuse(self.reference).with_outputs(outputs).in_precision(DTYPES[self.settings.precision])
            from . import tuning

            tuning.use_user_table(self.device)
            return CUDAGraphEngine(model.to(self.device), tuning.tune_new if self.settings.tune else None)
        from .engines.openvino import OpenVINOEngine

        def make_onnx() -> bytes:
            from .engines.export import onnx_from_model

            model = fuse(self.reference).with_outputs(outputs)
            return onnx_from_model(model, products="conv").SerializeToString()

        identity = {**self._identity, **self.settings.engine_fields(), "outputs": list(outputs)}
        return OpenVINOEngine(make_onnx, identity, self.settings.precision, self.settings.threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the reference; the engine is loaded again."""
        return CompiledConformer, (self._source, self.settings, self.reason)

    def extra_repr(self) -> str:
        return self.reason


class _ReferenceEngine:
    """The reference model behind an engine's interface."""

    def __init__(self, model: Conformer, outputs: Sequence[str]) -> None:
        self._model, self._outputs = model, tuple(outputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if any(name.endswith(COUPLING) for name in self._outputs):
                return observed_outputs(copy.deepcopy(self._model), images.float(), self._outputs)
            return reference_outputs(self._model, images.float(), self._outputs)


def check_images(images: Tensor, model: Conformer, device: torch.device) -> None:
    """Raises ValueError or TypeError, with the values, unless an engine on `device` can run `images`."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor, got {type(images).__name__}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"images must be floating point and normalised, or uint8, got {images.dtype}; see conformer_fast.preprocess"
        )
    if images.layout != torch.strided or images.is_nested:
        kind = "nested" if images.is_nested else images.layout
        raise TypeError(f"images must be one dense tensor, got a {kind} one")
    check_image_size(images, model.config, model.pad)
    if not len(images):
        raise ValueError(f"the batch is empty: images have shape {tuple(images.shape)}")
    if images.dtype == torch.uint8 and model.config.in_channels != 3:
        raise TypeError(
            f"uint8 images are pixels of RGB pictures, this model reads {model.config.in_channels} channel(s); pass "
            f"floating point, normalised as it was trained"
        )
    if images.device.type != device.type or device.index not in (None, images.device.index):
        place, fix = ("the CPU", "images.cpu()") if device.type == "cpu" else (device, f"images.to('{device}')")
        raise ValueError(f"this model is compiled for {place}, the images are on {images.device}; pass {fix}")
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError("compiled models do not train: the images require a gradient; pass images.detach()")
    if device.type == "cpu" and images.is_floating_point():
        _check_finite(images)


def _check_finite(images: Tensor) -> None:
    """One pass by NumPy: PyTorch's threads would still be spinning while the engine starts, and slow it down."""
    values = images.detach().float().resolve_neg().numpy()  # what an engine reads: a large float64 is infinite here
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total):  # a sum of finite values may overflow: look again
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(f"{bad} of the images' {images.numel()} values are NaN or infinite in fp32")


def _normalised(pixels: Tensor) -> Tensor:
    """uint8 pixels -> float32, to the last bit as `preprocess` returns them."""
    white, mean, std = _imagenet(pixels.device)
    return (pixels.float() / white - mean) / std


@cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The constants of `preprocess`, on the device: a GPU multiplies by the inverse of a plain number instead."""
    from .preprocess import MEAN, STD

    with torch.inference_mode(False):
        white, mean, std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (255, MEAN, STD))
    return white, mean.view(3, 1, 1), std.view(3, 1, 1)


def _on_device_of(model: Model) -> AbstractContextManager:
    """Makes the GPU that a module is on the current one; for any other model does nothing."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.is_cuda:
                return torch.cuda.device(parameter.device)
    return nullcontext()


def _identity(model: Conformer) -> dict[str, Any]:
    """What decides an engine's values: the weights, the sizes, and the code that turns them into a graph."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    from .engines import export, openvino

    code = hashlib.sha256()
    for module in (sys.modules[__name__], sys.modules[fuse.__module__], export, openvino):
        code.update(Path(str(module.__file__)).read_bytes())
    return {
        "weights": weights.hexdigest(),
        "config": asdict(model.config),
        "code": code.hexdigest(),
        "version": __version__,
    }
