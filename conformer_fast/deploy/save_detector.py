"""From a detector's networks to the bundle that holds their engines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bundles.folder import check_writable, write_bundle
from ..bundles.manifest import LABELS, DetectorManifest, StoredNetwork, prefix_of
from ..engines.base import Settings
from ..engines.detector import EngineNetworks, part_settings
from ..inference.detector import outputs_of, parts_of
from ..model.detector.class_names import detector_labels
from ..model.detector.config import MULTIPLE, edges_for
from ..model.detector.detect import Networks
from ..model.detector.reference import Detector
from ..model.digest import weights_sha256
from ..model.recipe import Recipe
from ..verification.verify_detector import graphs_error
from .save import check_labels, check_settings, label_lines, on_device


def save_detector(
    folder: str | os.PathLike[str],
    detector: Detector,
    settings: Settings,
    networks: Networks | None = None,
    *,
    rebuild_with: str,
    labels: Sequence[str] | None = None,
    key: bytes | None = None,
    images: Tensor | None = None,
) -> Path:
    """Writes the bundle of a detector's engines, and returns its folder.

    detector: in fp32 on the CPU; networks: of these settings; None: engines are built for the bundle alone; others: as
    `save` takes them, whose errors it raises
    """
    check_settings(settings, detector=True)
    check_writable(folder, key)
    check_labels(labels, detector.config)
    own, parts = part_settings(detector, settings), parts_of(detector)
    engines = networks.engines if isinstance(networks, EngineNetworks) else {}
    graphs: dict[str, bytes] = {}
    files: dict[str, bytes] = {}
    stored: dict[str, StoredNetwork] = {}
    contents = None
    for name, part in parts.items():
        backend, outputs = own[name].backend, outputs_of(name)
        with on_device(settings.device):
            graph = backend.graph(part, own[name], outputs)
            contents = backend.contents(part, own[name], outputs, graph, engines.get(name))
        files |= {prefix_of(name) + file: content for file, content in contents.files.items()}
        graphs |= {} if graph is None else {name: graph}
        onnx = None if graph is None else hashlib.sha256(graph).hexdigest()
        stored[name] = StoredNetwork(outputs, onnx, tuple(contents.shapes))
    assert contents is not None
    measured = None
    if settings.backend.ahead and graphs:
        measured = graphs_error(graphs, detector, own["proposer"].backend.shapes[0], images)
    names = labels or detector_labels(detector.recipe, detector.config)
    manifest = DetectorManifest(
        backend=settings.backend.name,
        precision=settings.precision,
        precisions=contents.precisions,
        config=detector.config,
        networks=stored,
        runtime=contents.runtime,
        preprocessing=_preprocessing(detector.recipe),
        labels=LABELS,
        sha256={"weights": weights_sha256(detector)},
        measured=measured,
        rebuild=rebuild_with,
    )
    return write_bundle(folder, manifest, {**files, LABELS: label_lines(names)}, key)


def _preprocessing(recipe: Recipe) -> dict[str, Any]:
    mean, std = recipe.normalization
    return {
        "size": recipe.size,
        "resize": "the ratio kept, until the long or the short edge is reached",
        "edges": list(edges_for(recipe.size)),
        "interpolation": "OpenCV's bilinear",
        "scale": "1 / 255",
        "mean": list(mean),
        "std": list(std),
        "pad": f"zeros at the bottom and right, to multiples of {MULTIPLE}",
    }
