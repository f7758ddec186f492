"""From an engine's settings to the bundle that holds it, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bundles.folder import check_writable, write_bundle
from ..bundles.manifest import LABELS, Manifest
from ..checkpoints.adopt import Source
from ..engines.base import Engine, Settings
from ..engines.registry import choose, with_bundles
from ..errors import ArgumentError, ArgumentTypeError, BackendError, shown
from ..model.config import ConformerConfig
from ..model.detector.config import DetectorConfig
from ..model.digest import weights_sha256
from ..model.outputs import LOGITS, SUM, rebuild
from ..model.precision import FORMATS
from ..model.recipe import Recipe, check_label_lines, shown_labels
from ..model.shapes import Shapes, side_within
from ..verification.graph import graph_error


def save(
    folder: str | os.PathLike[str],
    source: Source,
    settings: Settings,
    engine: Engine | None = None,
    *,
    rebuild_with: str,
    labels: Sequence[str] | None = None,
    key: bytes | None = None,
    images: Tensor | None = None,
) -> Path:
    """Writes the bundle of an engine that returns the source's outputs, and returns its folder.

    engine:       of these settings; None: it is built for the bundle alone
    rebuild_with: the call that makes the bundle again
    labels:       the classes' names, in order; default: those of the model's recipe, else ImageNet's for 1000 classes,
                  else "class 0", ...
    key:          signs the bundle, as in FastConformer.save
    images:       (B, in_channels, H, W) on the CPU, on which the graph of an engine for other machines is measured;
                  default: noise

    Raises BackendError where such an engine has no bundle, BundleError when it cannot be written, EngineError when
    there is no engine, ArgumentError for labels that do not fit the model or a precision whose range the model exceeds.
    """
    backend, reference, outputs = settings.backend, source.reference, source.outputs
    check_settings(settings)
    check_writable(folder, key)
    check_labels(labels, reference.config)
    with on_device(settings.device):
        graph = backend.graph(reference, settings, outputs)
        measured = None
        if graph is not None and backend.ahead:
            measured = graph_error(graph, reference, outputs, backend.shapes[0], images)
        contents = backend.contents(reference, settings, outputs, graph, engine)
    files = dict(contents.files)
    scored = bool({*LOGITS, SUM} & set(outputs))
    if labels is not None and not scored:
        raise ArgumentError(f"labels are for scores, and the model returns {', '.join(outputs)}; leave them out")
    if scored:
        files[LABELS] = label_lines(shown_labels(reference.recipe, reference.config, labels))
    manifest = Manifest(
        backend=backend.name,
        precision=settings.precision,
        precisions=contents.precisions,
        config=reference.config,
        pad=reference.pad,
        outputs=outputs,
        structure=rebuild(source.structure, outputs),
        shapes=tuple(contents.shapes),
        runtime=contents.runtime,
        preprocessing=_preprocessing(reference.recipe, contents.shapes) if reference.config.in_channels == 3 else None,
        labels=LABELS if scored else None,
        sha256={
            "weights": weights_sha256(reference),
            "onnx": None if graph is None else hashlib.sha256(graph).hexdigest(),
        },
        measured=measured,
        rebuild=rebuild_with,
    )
    return write_bundle(folder, manifest, files, key)


def check_settings(settings: Settings, detector: bool = False) -> None:
    """Raises BackendError where no bundle of these settings could be made here, of a Conformer or of a detector."""
    backend = settings.backend
    if backend.name not in with_bundles():
        raise BackendError(
            f"backend {backend.name!r} has no engine to save; compile with backend {', '.join(with_bundles())}"
        )
    if not backend.ahead:
        choose(backend, settings.precision, detector=detector)
    backend.check(settings)


def _preprocessing(recipe: Recipe, shapes: Sequence[Shapes]) -> dict[str, Any]:
    mean, std = recipe.normalization
    return {
        "size": side_within(shapes, recipe.size),
        "resize": "short edge to int(256 / 224 * size)",
        "interpolation": "Pillow's bicubic",
        "crop": "center, size x size",
        "scale": "1 / 255",
        "mean": list(mean),
        "std": list(std),
    }


def check_labels(labels: Sequence[str] | None, config: ConformerConfig | DetectorConfig) -> None:
    """Raises ArgumentError unless there is one name, of one line, for each class of the model; None is left to us."""
    if labels is None:
        return
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ArgumentTypeError(f"labels must be a list of names, got {shown(repr(labels))}")
    if len(labels) != config.num_classes:
        raise ArgumentError(
            f"{len(labels)} labels for a model of {config.num_classes} classes; give one for each, in order"
        )
    check_label_lines(labels)


def label_lines(labels: Sequence[str]) -> bytes:
    """The labels' file."""
    return "".join(f"{label}\n" for label in labels).encode()


def call(function: str, settings: Settings, **more: Any) -> str:
    """The beginning of the call `function(model, ...)` that makes the same engine on another machine, up to its ")"."""
    backend = settings.backend
    options = {"backend": backend.name, "precision": settings.precision, **backend.elsewhere(), **more}
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{function}, {given}" + (", quantization=images" if settings.precision in FORMATS else "")


def on_device(device: str | torch.device) -> AbstractContextManager:
    """Makes a GPU the current one; for any other device does nothing."""
    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" and device.index is not None else nullcontext()
