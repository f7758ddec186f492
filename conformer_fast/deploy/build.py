"""build(): from any Conformer to a TensorRT engine in a bundle. TensorRT-RTX needs no GPU for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bundles.folder import check_writable
from ..calibration.resolve import quantization_of
from ..checkpoints.adopt import Model, Source, adopt
from ..engines.onnx.export import graph_of
from ..inference.lower import lower
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.precision import DTYPES
from ..model.shapes import Shapes, check_shapes, usual_shapes
from ..storage.hashed import weights_sha256
from ..verification.graph import _measured, _noise
from ..version import __version__
from .load import check_labels, write_tensorrt_bundle

if TYPE_CHECKING:
    from ..engines.tensorrt.flavors import Flavor


def build(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    profiles: Sequence[Shapes] | None = None,
    targets: Sequence[str] = (),
    flavor: str = "auto",
    outputs: Sequence[str] | None = None,
    calibration: Quantization | Iterable[Tensor] | None = None,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
    rebuild: str | None = None,
) -> Path:
    """Builds a TensorRT engine of `model` and writes it as a bundle, which `conformer_fast.load` runs.

    model:       what `compile` takes. It is not changed.
    folder:      of the bundle; an earlier bundle there is replaced
    precision:   "fp16", "bf16", "fp32", or "int8" or "fp8" for the products of stem and branches, with fp16 around them
    profiles:    the shapes the engine will take; default: batches of 1 to 64 images of the usual 224 x 224
    targets:     compute capabilities to build for, as "sm86"; none: the GPU here. Only TensorRT-RTX takes any.
    flavor:     "tensorrt", "tensorrt-rtx" or "auto": TensorRT if it is installed and there is a GPU, else TensorRT-RTX
    outputs:     names of InferenceConformer.outputs, such as ["logits"]; default: what the model returns
    calibration: for "int8" and "fp8", what `calibrate` returned, or the images that it is to measure: batches (B,
                 in_channels, H, W), normalized
    key:         signs the bundle (HMAC-SHA256)
    labels:      the classes' names, in order; default: ImageNet's for 1000 classes, else "class 0", ...
    rebuild:     the command to name when the engine does not fit a machine; default: this call, for the GPU there

    The manifest's "measured" has the error of the engine's graph, run by ONNX Runtime where that is installed, against
    the reference, on the first calibration images or else on noise.

    Returns the bundle's folder. Raises BackendError for what the flavor cannot do, EngineError when it fails,
    BundleError when the bundle cannot be written, ValueError for options that do not fit together or the model, and
    for a precision whose range the model exceeds.
    """
    from ..engines.tensorrt.flavors import get_flavor
    from ..engines.tensorrt.plan import check_options

    for name, value in (("targets", targets), ("outputs", outputs)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list of names, such as [{value!r}]")
    chosen = get_flavor(flavor)
    check_options(chosen, targets, precision)
    source = adopt(model)
    profiles = (usual_shapes(source.reference.config),) if profiles is None else tuple(profiles)
    if outputs is not None:
        source = replace(source, outputs=tuple(outputs), structure=outputs[0] if len(outputs) == 1 else list(outputs))
    return write_engine(
        folder,
        source,
        precision=precision,
        profiles=profiles,
        flavor=chosen,
        targets=targets,
        calibration=calibration,
        key=key,
        labels=labels,
        rebuild=rebuild or _call(folder, precision, profiles, chosen, outputs),
    )


def write_engine(
    folder: str | os.PathLike[str],
    source: Source,
    *,
    precision: str,
    profiles: Sequence[Shapes],
    flavor: Flavor,
    targets: Sequence[str] = (),
    calibration: Quantization | Iterable[Tensor] | None = None,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
    rebuild: str | None = None,
) -> Path:
    """Builds the engine of a source, with its outputs, and writes the bundle. The rest is as in `build`."""
    from ..engines.tensorrt.plan import targets_of

    check_writable(folder, key)
    check_labels(labels, source.reference.config)
    check_shapes(profiles, source.reference.config, source.reference.pad)
    fused = lower(source.reference).with_outputs(source.outputs)
    quantization, images = quantization_of(fused, precision, calibration)
    onnx = graph_of(fused, precision, quantization)
    calibrated = images is not None
    if images is None:
        images = _noise(fused, profiles[0])
    measured = _measured(onnx, source.reference, source.outputs, images, calibrated)
    plan = _plan(onnx, precision, profiles, flavor, targets)
    return write_tensorrt_bundle(
        folder,
        source,
        plan,
        precision=precision,
        precisions=precisions(precision),
        profiles=profiles,
        flavor=flavor,
        targets=targets_of(flavor, targets),
        gpu=_gpu_of(targets),
        weights=weights_sha256(source.reference),
        onnx=hashlib.sha256(onnx).hexdigest(),
        rebuild=rebuild or _call(folder, precision, profiles, flavor),
        measured=measured,
        key=key,
        labels=labels,
    )


def plan_of(
    model: InferenceConformer,
    precision: str,
    profile: Shapes,
    flavor: Flavor,
    quantization: Quantization | None = None,
) -> bytes:
    """The engine of an fp32 inference model, with its outputs, for the GPU here; from the cache if it is there."""
    return _plan(graph_of(model, precision, quantization), precision, [profile], flavor, ())


def _plan(onnx: bytes, precision: str, profiles: Sequence[Shapes], flavor: Flavor, targets: Sequence[str]) -> bytes:
    from ..engines.cache import cached
    from ..engines.tensorrt.plan import engine_from_onnx, targets_of

    fields = {
        "conformer_fast": __version__,
        "backend": "tensorrt",
        "precision": precision,
        "onnx": hashlib.sha256(onnx).hexdigest(),
        "profiles": [profile.to_json() for profile in profiles],
        "flavor": flavor.name,
        "version": flavor.version,
        "targets": list(targets_of(flavor, targets)),
        "gpu": _gpu_of(targets),
    }
    return cached(fields, lambda: engine_from_onnx(onnx, profiles, flavor, targets, precision))


def _gpu_of(targets: Sequence[str]) -> str | None:
    """The GPU that an engine is built on and for; None where targets are named."""
    return None if targets else torch.cuda.get_device_name()


def precisions(precision: str) -> dict[str, str]:
    """What each part of an engine of this precision is computed in."""
    around = precision if precision in DTYPES else "fp16"
    return {
        "products": precision,
        "attention, maps": around,
        "tokens, norms, softmax, heads, images, outputs": "fp32",
    }


def _call(
    folder: str | os.PathLike[str],
    precision: str,
    profiles: Sequence[Shapes],
    flavor: Flavor,
    outputs: Sequence[str] | None = None,
) -> str:
    """The call that builds the same engine for the GPU where it is made."""
    options: dict[str, Any] = {"precision": precision, "profiles": list(profiles), "flavor": flavor.name}
    if outputs is not None:
        options["outputs"] = list(outputs)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    calibration = "" if precision in DTYPES else ", calibration=images"
    return f"conformer_fast.build(model, {Path(folder).absolute().name!r}, {given}{calibration})"
