"""compile(): from any Conformer to the fastest verified one on this machine."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoints.adopt import Model, Source, adopt
from ..engines.module import Engine, FastConformer
from ..engines.registry import Settings, choose
from ..engines.triton.graphs import CUDAGraphEngine
from ..errors import BackendError
from ..inference.lower import lower
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.outputs import COUPLING, observed_outputs, reference_outputs
from ..model.precision import DTYPES
from ..model.reference import Conformer
from ..model.shapes import Shapes, usual_shapes
from ..storage.hashed import weights_sha256
from ..version import __version__
from .load import write_openvino_bundle, write_triton_bundle

if TYPE_CHECKING:
    from ..verification.verify import Report


def compile(
    model: Model,
    *,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tune: bool = False,
    profile: Shapes | None = None,
    calibration: Quantization | Iterable[Tensor] | None = None,
) -> CompiledConformer:
    """A fast model that returns what `model` returns.

    model:     a reference Conformer, the official repository's Conformer, an mmpretrain ImageClassifier or Conformer
               backbone, mmdetection's backbone, a state dict, or a checkpoint's path. It is not changed.
    backend:   "auto" (the first of these that can run here), "triton" (CUDA), "openvino" (CPU), "reference"; or
               "tensorrt" (CUDA), which is built for the shapes of one profile
    precision: "auto" (the fastest of the following that this hardware has), "fp32", "bf16" or, on a GPU, "fp16".
               Products of fp32 are exact, unless torch.set_float32_matmul_precision allows TF32 to them. With a
               `calibration`, "int8" or, on newer GPUs, "fp8": products in 8 bits, the rest in 16.
    threads:   CPU cores to use; default: as many as PyTorch uses
    tune:      on CUDA, measure at the first call with a new shape which tile, or PyTorch, is fastest for each kernel.
               It takes minutes; the result is kept for later programs, as that of `conformer-fast tune` is.
    profile:   the shapes that a TensorRT engine takes; default: batches of 1 to 64 images of the usual 224 x 224
    calibration: for 8 bits, what `conformer_fast.calibrate` returned, or the images that it is to measure: batches (B,
               in_channels, H, W), normalized

    On CUDA it runs on the GPU that `model` is on, else on the current one; images must be on that GPU, results are.

    The engine for an image size is built at the first call with that size and then kept: on the CPU in memory and on
    disk; on a GPU as a CUDA graph for that size and for batches up to the next of 1, 2, 4, 8, 10, 12, ... images. Its
    memory is planned once, and all compiled models on a GPU share it. A batch for which the GPU lacks memory raises
    torch.OutOfMemoryError; smaller ones still run. A TensorRT engine is built at once, for its profile, and kept on
    disk.

    Raises BackendError when the backend or precision cannot be had here, cannot be tuned or takes no profile;
    CheckpointError or ValueError when `model` is not a Conformer or is in training mode; ValueError when only one of an
    8-bit precision and its calibration is given, or they do not fit; EngineError when TensorRT fails.
    """
    if isinstance(model, FastConformer):
        raise TypeError("compile: the model is compiled already; give the one it was made from")
    with _on_device_of(model):
        settings, reason = choose(backend, precision, threads)
    if tune and settings.backend != "triton":
        raise BackendError(f"only the backend 'triton' can be tuned, this is {reason}")
    if profile and settings.backend != "tensorrt":
        raise BackendError(f"only the backend 'tensorrt' takes a profile, others take any shape; this is {reason}")
    source = adopt(model)
    if settings.backend == "tensorrt":
        profile = profile or usual_shapes(source.reference.config)
    quantization = None
    if calibration is not None or settings.precision not in DTYPES:
        from ..calibration.resolve import quantization_of

        quantization, _ = quantization_of(lower(source.reference), settings.precision, calibration)
    settings = replace(settings, tune=tune, profile=profile, quantization=quantization)
    return CompiledConformer(source, settings, reason)


class CompiledConformer(FastConformer):
    """A FastConformer that has its reference: it returns what the compiled model's own forward returns."""

    def __init__(self, source: Source, settings: Settings, reason: str) -> None:
        reference = source.reference
        super().__init__(settings, reason, reference.config, reference.pad, source.outputs, source.structure)
        self._source = source
        self._identity = _identity(reference, settings) if settings.backend == "openvino" else {}
        self._engine = self.engine(source.outputs)

    @property
    def reference(self) -> Conformer:
        """The model that defines what is correct here, in fp32 on the CPU."""
        return self._source.reference

    def verify(self, images: Tensor) -> Report:
        """Compares with the reference in float64, per head and per block; prints the report and returns it."""
        from ..verification.verify import verify

        report = verify(self, images, self.reference, self.engine, self.settings.quantization)
        print(report)
        return report

    def save(
        self, folder: str | os.PathLike[str], *, labels: Sequence[str] | None = None, key: bytes | None = None
    ) -> Path:
        """Writes a bundle, which `conformer_fast.load` runs without the model. Returns its folder.

        labels: the classes' names, in order; default: ImageNet's for 1000 classes, else "class 0", ...
        key:    signs the bundle (HMAC-SHA256); `load` with the same key then accepts no other

        openvino: the graph, and the engines of the sizes run so far; if none was, of the usual size, which is built
        first. On another CPU the graph is built anew. triton: the weights as the kernels read them, and the tuned tiles
        of this GPU. The compiled kernels are not stored: they would be native code from a folder, and Triton keeps its
        own cache of them. tensorrt: the engine, for the GPUs it was built for.

        A bundle that is there already is replaced. Raises BackendError for the backend "reference", which has nothing
        to save; BundleError when the folder holds anything but a bundle or cannot be written, or when the model returns
        a class that cannot be restored.
        """
        if self.settings.backend == "reference":
            raise BackendError(
                "backend 'reference' has no engine to save; compile with backend 'openvino' (CPU), or 'triton' or "
                "'tensorrt' (CUDA)"
            )
        precision = self.settings.precision
        if self.settings.profile:
            from ..engines.tensorrt.flavors import get_flavor
            from .build import write_engine

            with torch.cuda.device(self.device):
                profiles, flavor = [self.settings.profile], get_flavor()
                return write_engine(
                    folder,
                    self._source,
                    precision=precision,
                    profiles=profiles,
                    flavor=flavor,
                    calibration=self.settings.quantization,
                    key=key,
                    labels=labels,
                )
        if self.settings.backend == "triton":
            weights = weights_sha256(self.reference)
            return write_triton_bundle(
                folder, self._source, self._for_gpu(self.outputs), precision, weights, key, labels
            )
        from ..engines.openvino.engine import OpenVINOEngine

        assert isinstance(self._engine, OpenVINOEngine)
        onnx, weights = self._onnx(self.outputs), self._identity["weights"]
        return write_openvino_bundle(folder, self._source, onnx, self._engine, precision, weights, key, labels)

    def engine(self, outputs: Sequence[str]) -> Engine:
        """An engine of this model's settings that returns these outputs (names of InferenceConformer.outputs)."""
        if self.settings.backend == "reference":
            return _ReferenceEngine(self.reference, outputs)
        if self.settings.backend == "triton":
            from ..engines.triton import tuning

            tuning.use_user_table(self.device)
            return CUDAGraphEngine(self._for_gpu(outputs), tuning.tune_new if self.settings.tune else None)
        if self.settings.profile:
            return self._tensorrt_engine(outputs, self.settings.profile)
        from ..engines.openvino.engine import OpenVINOEngine

        identity = {**self._identity, **self.settings.engine_fields(), "outputs": list(outputs)}
        make_onnx = partial(self._onnx, outputs)
        return OpenVINOEngine(make_onnx, identity, self.settings.precision, self.settings.threads)

    def _tensorrt_engine(self, outputs: Sequence[str], profile: Shapes) -> Engine:
        from ..engines.tensorrt.engine import TensorRTEngine
        from ..engines.tensorrt.flavors import get_flavor
        from ..model.shapes import check_shapes
        from .build import plan_of

        check_shapes([profile], self.config, self.pad)
        flavor, model = get_flavor(), lower(self.reference).with_outputs(outputs)
        with torch.cuda.device(self.device):
            plan = plan_of(model, self.settings.precision, profile, flavor, self.settings.quantization)
        return TensorRTEngine(plan, flavor, outputs, self.device)

    def _for_gpu(self, outputs: Sequence[str]) -> InferenceConformer:
        dtype = DTYPES.get(self.settings.precision, torch.float16)
        return self._quantized(lower(self.reference).with_outputs(outputs).in_precision(dtype)).to(self.device)

    def _quantized(self, model: InferenceConformer) -> InferenceConformer:
        return model.quantized(self.settings.quantization) if self.settings.quantization else model

    def _onnx(self, outputs: Sequence[str]) -> bytes:
        from ..engines.onnx.export import onnx_from_model

        model = self._quantized(lower(self.reference).with_outputs(outputs))
        return onnx_from_model(model, products="conv").SerializeToString()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the reference; the engine is loaded again."""
        return CompiledConformer, (self._source, self.settings, self.reason)


class _ReferenceEngine:
    """The reference model behind an engine's interface."""

    def __init__(self, model: Conformer, outputs: Sequence[str]) -> None:
        self._model, self._outputs = model, tuple(outputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if any(name.endswith(COUPLING) for name in self._outputs):
                return observed_outputs(copy.deepcopy(self._model), images.float(), self._outputs)
            return reference_outputs(self._model, images.float(), self._outputs)


def _on_device_of(model: Model) -> AbstractContextManager:
    """Makes the GPU that a module is on the current one; for any other model does nothing."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.is_cuda:
                return torch.cuda.device(parameter.device)
    return nullcontext()


def _identity(model: Conformer, settings: Settings) -> dict[str, Any]:
    """What decides an engine's values: weights, sizes, scales, and the code that turns them into a graph."""
    from ..engines.onnx import export, typed_graph
    from ..engines.openvino import engine as engine_module
    from ..inference import quantization as quantization_module
    from ..model import functional

    code = hashlib.sha256()
    ours = sys.modules[__name__], functional, quantization_module
    for module in (*ours, export, typed_graph, engine_module):
        code.update(Path(str(module.__file__)).read_bytes())
    return {
        "weights": weights_sha256(model),
        "config": asdict(model.config),
        "quantization": settings.quantization and settings.quantization.digest,
        "code": code.hexdigest(),
        "version": __version__,
    }
