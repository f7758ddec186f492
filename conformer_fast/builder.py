"""build(): from any Conformer to a TensorRT engine in a bundle. TensorRT-RTX needs no GPU for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import __version__
from .backends import DTYPES, BackendError
from .bundle import check_labels, usual_profile, weights_sha256, write_tensorrt_bundle
from .calibration import calibrate
from .fuse import LOGITS, SUM, InferenceConformer, fuse
from .manifest import check_writable
from .model import Conformer, check_image_size
from .outputs import reference_outputs
from .paths import cache_root
from .profile import Profile
from .quantization import FORMATS, Quantization
from .source import Model, Source, load_source
from .verify import relative_error

if TYPE_CHECKING:
    from .engines.flavours import Flavour

MEASURED_IMAGES = 8  # of the calibration's, on which the graph's error is measured


def build(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    profiles: Sequence[Profile] | None = None,
    targets: Sequence[str] = (),
    flavour: str = "auto",
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
    flavour:     "tensorrt", "tensorrt-rtx" or "auto": TensorRT if it is installed and there is a GPU, else TensorRT-RTX
    outputs:     names of InferenceConformer.outputs, such as ["logits"]; default: what the model returns
    calibration: for "int8" and "fp8", what `calibrate` returned, or the images that it is to measure: batches (B,
                 in_channels, H, W), normalised
    key:         signs the bundle (HMAC-SHA256)
    labels:      the classes' names, in order; default: ImageNet's for 1000 classes, else "class 0", ...
    rebuild:     the command to name when the engine does not fit a machine; default: this call, for the GPU there

    The manifest's "measured" has the error of the engine's graph, run by ONNX Runtime where that is installed, against
    the reference, on the first calibration images or else on noise.

    Returns the bundle's folder. Raises BackendError for what the flavour cannot do, EngineError when it fails,
    BundleError when the bundle cannot be written, ValueError for options that do not fit together or the model, and
    for a precision whose range the model exceeds.
    """
    from .engines.flavours import get_flavour
    from .engines.tensorrt import check_options

    for name, value in (("targets", targets), ("outputs", outputs)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list of names, such as [{value!r}]")
    chosen = get_flavour(flavour)
    check_options(chosen, targets, precision)
    source = load_source(model)
    profiles = (usual_profile(source.reference.config),) if profiles is None else tuple(profiles)
    if outputs is not None:
        source = replace(source, outputs=tuple(outputs), structure=outputs[0] if len(outputs) == 1 else list(outputs))
    return write_engine(
        folder,
        source,
        precision=precision,
        profiles=profiles,
        flavour=chosen,
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
    profiles: Sequence[Profile],
    flavour: Flavour,
    targets: Sequence[str] = (),
    calibration: Quantization | Iterable[Tensor] | None = None,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
    rebuild: str | None = None,
) -> Path:
    """Builds the engine of a source, with its outputs, and writes the bundle. The rest is as in `build`."""
    from .engines.tensorrt import targets_of

    check_writable(folder, key)
    check_labels(labels, source.reference.config)
    check_profiles(profiles, source.reference)
    fused = fuse(source.reference).with_outputs(source.outputs)
    quantization, images = quantization_of(fused, precision, calibration)
    onnx = graph_of(fused, precision, quantization)
    calibrated = images is not None
    if images is None:
        images = _noise(fused, profiles[0])
    measured = _measured(onnx, source.reference, source.outputs, images, calibrated)
    plan = _plan(onnx, precision, profiles, flavour, targets)
    return write_tensorrt_bundle(
        folder,
        source,
        plan,
        precision=precision,
        precisions=precisions(precision),
        profiles=profiles,
        flavour=flavour,
        targets=targets_of(flavour, targets),
        gpu=_gpu_of(targets),
        weights=weights_sha256(source.reference),
        onnx=hashlib.sha256(onnx).hexdigest(),
        rebuild=rebuild or _call(folder, precision, profiles, flavour),
        measured=measured,
        key=key,
        labels=labels,
    )


def plan_of(
    model: InferenceConformer,
    precision: str,
    profile: Profile,
    flavour: Flavour,
    quantization: Quantization | None = None,
) -> bytes:
    """The engine of an fp32 inference model, with its outputs, for the GPU here; from the cache if it is there."""
    return _plan(graph_of(model, precision, quantization), precision, [profile], flavour, ())


def _plan(onnx: bytes, precision: str, profiles: Sequence[Profile], flavour: Flavour, targets: Sequence[str]) -> bytes:
    from .engines.cache import cached
    from .engines.tensorrt import engine_from_onnx, targets_of

    fields = {
        "conformer_fast": __version__,
        "backend": "tensorrt",
        "precision": precision,
        "onnx": hashlib.sha256(onnx).hexdigest(),
        "profiles": [profile.to_json() for profile in profiles],
        "flavour": flavour.name,
        "version": flavour.version,
        "targets": list(targets_of(flavour, targets)),
        "gpu": _gpu_of(targets),
    }
    return cached(fields, lambda: engine_from_onnx(onnx, profiles, flavour, targets, precision))


def _gpu_of(targets: Sequence[str]) -> str | None:
    """The GPU that an engine is built on and for; None where targets are named."""
    return None if targets else torch.cuda.get_device_name()


def graph_of(model: InferenceConformer, precision: str, quantization: Quantization | None = None) -> bytes:
    """The typed ONNX graph of an fp32 inference model; 8-bit products are computed among fp16."""
    if find_spec("onnx") is None:
        raise BackendError(
            'the graph is written with onnx, which is not installed: pip install "conformer-fast[tensorrt]"'
        )
    from .engines.export import onnx_from_model

    typed = model.in_precision(DTYPES.get(precision, torch.float16))
    return onnx_from_model(typed.quantized(quantization) if quantization else typed).SerializeToString()


def precisions(precision: str) -> dict[str, str]:
    """What each part of an engine of this precision is computed in."""
    around = precision if precision in DTYPES else "fp16"
    return {
        "products": precision,
        "attention, maps": around,
        "tokens, norms, softmax, heads, images, outputs": "fp32",
    }


def quantization_of(
    model: InferenceConformer, precision: str, calibration: Quantization | Iterable[Tensor] | None
) -> tuple[Quantization | None, Tensor | None]:
    """How to quantise `model`, in fp32, if at all, and the first of the calibration's images if it is images.

    Raises ValueError when only one of an 8-bit precision and its calibration is given, or a calibration for another
    precision, and what `calibrate` raises.
    """
    if precision not in FORMATS:
        if calibration is not None:
            raise ValueError(f"calibration is for {' and '.join(FORMATS)}; leave it out with precision {precision!r}")
        return None, None
    if calibration is None:
        raise ValueError(f"precision {precision!r} takes its ranges from images: give some hundred as calibration")
    if isinstance(calibration, Quantization):
        if calibration.precision != precision:
            raise ValueError(
                f"the calibration was made for {calibration.precision}, not for {precision!r}; calibrate again"
            )
        return calibration, None
    batches = calibration if isinstance(calibration, Sequence) else list(calibration)
    quantization = calibrate(model, batches, precision=precision, cache=cache_root() / "calibration")
    first: list[Tensor] = []
    for images in batches:
        room = MEASURED_IMAGES - sum(map(len, first))
        if not room:
            break
        if len(images) and images.shape[1:] == [*first, images][0].shape[1:]:
            first.append(images[:room].detach().to("cpu", torch.float32))  # where the reference is
    return quantization, torch.cat(first)


def check_profiles(profiles: Sequence[Profile], reference: Conformer) -> None:
    """Raises ValueError when there is none, or the model takes no images of its sizes."""
    if not profiles:
        raise ValueError("an engine needs a profile, which says the shapes that it takes; none was given")
    for profile in profiles:
        for shape in profile.shapes(reference.config.in_channels):
            check_image_size(torch.empty(shape, device="meta"), reference.config, reference.pad)


def _call(
    folder: str | os.PathLike[str],
    precision: str,
    profiles: Sequence[Profile],
    flavour: Flavour,
    outputs: Sequence[str] | None = None,
) -> str:
    """The call that builds the same engine for the GPU where it is made."""
    options: dict[str, Any] = {"precision": precision, "profiles": list(profiles), "flavour": flavour.name}
    if outputs is not None:
        options["outputs"] = list(outputs)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    calibration = "" if precision in DTYPES else ", calibration=images"
    return f"conformer_fast.build(model, {Path(folder).absolute().name!r}, {given}{calibration})"


def _noise(model: InferenceConformer, profile: Profile) -> Tensor:
    shape = 2, model.config.in_channels, profile.height[1], profile.width[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _measured(
    onnx: bytes, reference: Conformer, names: tuple[str, ...], images: Tensor, calibrated: bool
) -> dict[str, Any] | None:
    """How far the graph is from the reference, by ONNX Runtime; None where that cannot run it.

    Raises ValueError when a value of the graph's is not finite.
    """
    from .engines.onnx_runtime import run_graph

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
