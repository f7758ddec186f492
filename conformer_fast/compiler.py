"""compile(): from any Conformer to the fastest verified one on this machine."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from .backends import Settings, choose
from .fuse import fuse
from .model import Conformer, check_image_size
from .outputs import COUPLING, observed_outputs, reference_outputs
from .source import Model, Source, load_source, rebuild

if TYPE_CHECKING:
    from .verify import Report

Engine = Callable[[Tensor], tuple[Tensor, ...]]


def compile(
    model: Model, *, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> CompiledConformer:
    """A fast model that returns what `model` returns.

    model:     a reference Conformer, the official repository's Conformer, an mmpretrain ImageClassifier or Conformer
               backbone, mmdetection's backbone, a state dict, or a checkpoint's path. It is not changed.
    backend:   "auto", "openvino" or "reference"
    precision: "auto" (the fastest that this hardware has), "fp32" or "bf16"
    threads:   CPU cores to use; default: as many as PyTorch uses

    The engine for an image size is built at the first call with that size and then kept, in memory and on disk.

    Raises BackendError when the backend or precision cannot be had here, CheckpointError or ValueError when `model` is
    not a Conformer or is in training mode.
    """
    if isinstance(model, CompiledConformer):
        raise TypeError("compile: the model is compiled already; give the one it was made from")
    settings, reason = choose(backend, precision, threads)
    return CompiledConformer(load_source(model), settings, reason)


class CompiledConformer(nn.Module):
    """images (B, in_channels, H, W), floating point -> what the compiled model's own forward returns, in fp32.

    Safe to call from several threads. `settings` and `reason` tell how it runs. It has no parameters and never trains.
    """

    def __init__(self, source: Source, settings: Settings, reason: str) -> None:
        super().__init__()
        self.settings, self.reason = settings, reason
        self._source = source
        self._identity = _identity(source.reference) if settings.backend != "reference" else {}
        self._engine = self.engine(source.outputs)
        self.eval()

    @property
    def reference(self) -> Conformer:
        """The model that defines what is correct here, in fp32 on the CPU."""
        return self._source.reference

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors it returns, in order (see InferenceConformer)."""
        return self._source.outputs

    def forward(self, images: Tensor) -> Any:
        return rebuild(self._source.structure, self.run(images))

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors called `outputs`, outside the structure that `forward` puts them in."""
        check_images(images, self.reference)
        return self._engine(images)

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


def check_images(images: Tensor, model: Conformer) -> None:
    """Raises ValueError or TypeError, with the values, unless `images` is a batch that a CPU engine can run."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point and normalised, got {images.dtype}; see conformer_fast.preprocess"
        )
    if images.layout != torch.strided or images.is_nested:
        kind = "nested" if images.is_nested else images.layout
        raise TypeError(f"images must be one dense tensor, got a {kind} one")
    check_image_size(images, model.config, model.pad)
    if not len(images):
        raise ValueError(f"the batch is empty: images have shape {tuple(images.shape)}")
    if images.device.type != "cpu":
        raise ValueError(f"this model is compiled for the CPU, the images are on {images.device}; pass images.cpu()")
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError("compiled models do not train: the images require a gradient; pass images.detach()")
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
