"""How far each network of a compiled detector is from the reference's, within the bounds of verify.py.

Every network is judged by itself: it is given what the reference in float64 finds before it. So an error in the maps
does not move the regions that the heads are judged on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..engines.base import Engine, Settings
from ..engines.detector import EngineNetworks, part_settings
from ..errors import ArgumentError, BackendError
from ..inference.detector import outputs_of, parts_of
from ..inference.lower import lower
from ..model.detector.detect import PYTORCH, Networks, detect
from ..model.detector.parts import Proposed
from ..model.detector.reference import Detector, checked_sizes
from ..model.distance import relative_error
from ..model.precision import DTYPES, tf32_as_asked
from ..model.shapes import Shapes
from .verify import Report, report_of

SIDE = 256  # pixels of the noise that graphs are measured on


def verify_detector(networks: Networks, settings: Settings, images: Tensor, reference: Detector) -> Report:
    """Measures a detector's networks on images (B, 3, H, W). The reference runs in float64 on the CPU, slowly.

    networks:  of these settings; reference: the detector that they were made from, in fp32 on the CPU

    The rows are the maps of the pyramid, what the region proposal network makes of each, the box head's logits and
    deltas, and the mask head's logits if any mask was read. A loaded detector in 8 bits, whose quantization is not
    known, is judged by the floor alone.
    """
    sizes = checked_sizes(images, None)
    images = images.detach().to("cpu", torch.float32)
    seen = _Seen(copy.deepcopy(reference).double())
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        detect(seen, reference.config, images.double(), sizes)
        ours = seen.again(networks, settings.device, torch.float32)
        eager = _eager(seen, settings, reference)
    return report_of(settings.backend.name, settings.precision, ours, {}, seen.found, eager)


def graphs_error(
    graphs: Mapping[str, bytes], reference: Detector, shapes: Shapes, images: Tensor | None = None
) -> dict[str, Any] | None:
    """The manifest's "measured": how far the networks' graphs, run by ONNX Runtime, are from the reference; None where
    that cannot run.

    graphs: of each network
    images: (1, 3, H, W) of the calibration, on the CPU; None: one of noise, of SIDE pixels a side or what `shapes`, of
            the images, allow

    Raises ArgumentError when a value of a graph's is not finite.
    """
    from ..engines.onnx.runtime import run_graph

    def engine(name: str) -> Engine:
        return lambda values: run_graph(graphs[name], values, outputs_of(name))

    source = "noise" if images is None else "calibration"
    if images is None:
        images = _noise(shapes)
    seen = _Seen(reference)
    networks = EngineNetworks({name: engine(name) for name in graphs}, reference.config)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        detect(seen, reference.config, images, checked_sizes(images, None))
        try:
            found = seen.again(networks, "cpu", torch.float32)
        except BackendError:  # it is not installed, or has no bf16
            return None
    bad = [name for name, value in found.items() if not value.isfinite().all()]
    if bad:
        raise ArgumentError(
            f"{bad[0]} of the typed graphs is NaN or infinite: the detector exceeds the precision's range; use bf16 or "
            f"fp32, or check the weights"
        )
    exact = seen.found
    return {
        "runtime": {"name": "onnxruntime", "version": version("onnxruntime")},
        "images": len(images),
        "source": source,
        "error": {name: relative_error(value, exact[name]) for name, value in found.items()},
        "top1_agreement": None,
        "accuracy": None,
    }


def _noise(shapes: Shapes) -> Tensor:
    H, W = (min(largest, max(smallest, SIDE)) for smallest, _, largest in (shapes.height, shapes.width))
    return torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(0))


@dataclass
class _Seen:
    """A detector that remembers what its networks were given and what they found."""

    detector: Detector
    operators = PYTORCH
    images: Tensor = field(init=False)
    boxes_read: list[Tensor] = field(default_factory=list)
    masks_read: list[Tensor] = field(default_factory=list)

    def propose(self, images: Tensor) -> Proposed:
        self.images = images
        return self.detector.propose(images)

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        self.boxes_read.append(features)
        return self.detector.boxes(features)

    def masks(self, features: Tensor) -> Tensor:
        self.masks_read += [features] if len(features) else []
        return self.detector.masks(features)

    @property
    def found(self) -> dict[str, Tensor]:
        return self.again(self.detector, "cpu", self.images.dtype)

    @torch.no_grad()
    def again(self, networks: Networks, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """What other networks find in the same, by name."""

        def given(values: Tensor) -> Tensor:
            return values.to(device, dtype)

        found = dict(_named(networks.propose(given(self.images))))
        read = [networks.boxes(given(features)) for features in self.boxes_read]
        found |= {
            "box_logits": torch.cat([logits for logits, _ in read]),
            "box_deltas": torch.cat([deltas for _, deltas in read]),
        }
        if self.masks_read:
            found["mask_logits"] = torch.cat([networks.masks(given(features)) for features in self.masks_read])
        return {name: value.cpu() for name, value in found.items()}


def _named(proposed: Proposed) -> Iterator[tuple[str, Tensor]]:
    for kind, values in zip(("map", "regions"), proposed, strict=True):
        yield from ((f"{kind}.{level}", value) for level, value in enumerate(values))


def _eager(seen: _Seen, settings: Settings, reference: Detector) -> dict[str, Tensor]:
    """What PyTorch finds in this precision; in 8 bits the quantized inference networks. Nothing for 8 bits without a
    quantization."""
    if settings.precision in DTYPES:
        dtype = DTYPES[settings.precision]
        with tf32_as_asked(dtype):
            return seen.again(copy.deepcopy(reference).to(dtype), "cpu", dtype)
    if settings.quantization is None:
        return {}
    own = part_settings(reference, settings)
    networks = {
        name: lower(part, outputs_of(name), quantization=own[name].quantization)
        for name, part in parts_of(reference).items()
    }
    return seen.again(EngineNetworks(networks, reference.config), "cpu", torch.float32)
