"""The networks of a detector as engines, one for each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from conformer_fast.errors import ArgumentError, first_few
from conformer_fast.inference.detector import MASKS, REGIONS, parts_of, proposed_names
from conformer_fast.inference.lower import Lowered
from conformer_fast.model.detector.config import LEVELS
from conformer_fast.model.detector.parts import Proposed
from conformer_fast.model.detector.reference import Detector

from .base import Engine, Settings

ROWS = 4  # lengths of what the box head reads: as many as OpenVINO's engine has sizes of its own


class EngineNetworks:
    """What `detect` computes with.

    make: an engine of a part, with these settings, that returns these outputs, in fp32 on the CPU

    Raises ArgumentError for a quantization of another model's products.
    """

    def __init__(
        self,
        make: Callable[[Lowered, Settings, Sequence[str]], Engine],
        detector: Detector,
        settings: Settings,
    ) -> None:
        parts, quantization = parts_of(detector), settings.quantization
        if quantization is not None:
            named = [*quantization.ranges, *quantization.smoothing]
            unknown = [name for name in named if name.partition(".")[0] not in parts]
            if unknown:
                raise ArgumentError(
                    f"the quantization has ranges of {first_few(unknown)}, which this detector does not have; "
                    f"calibrate it on this one"
                )
        self._most, self._classes = detector.config.proposals, detector.config.num_classes
        outputs = {"proposer": proposed_names(), "boxes": (REGIONS,), "masks": (MASKS,)}
        engines = {
            name: make(part, replace(settings, quantization=quantization and quantization.part(name)), outputs[name])
            for name, part in parts.items()
        }
        self._propose, self._boxes, self._masks = engines["proposer"], engines["boxes"], engines.get("masks")

    def propose(self, images: Tensor) -> Proposed:
        found = [value.permute(0, 3, 1, 2) for value in self._propose(images)]
        return Proposed(tuple(found[:LEVELS]), tuple(found[LEVELS:]))

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Regions are the pixels of one row, as long as one of ROWS, so that few engines take them."""
        features = features.permute(0, 2, 3, 1).flatten(1)
        step = -(-self._most // ROWS)
        row = torch.zeros(
            1, 1, max(1, -(-len(features) // step)) * step, features.shape[1], dtype=torch.float32, device="cpu"
        )
        row[0, 0, : len(features)] = features
        (found,) = self._boxes(row)
        values = found[0, 0, : len(features)]
        return values[:, : self._classes + 1], values[:, self._classes + 1 :].contiguous()

    def masks(self, features: Tensor) -> Tensor:
        assert self._masks is not None
        if not len(features):  # an engine takes no empty batch
            side = 2 * features.shape[-1]
            return features.new_empty(0, self._classes, side, side)
        return self._masks(features.permute(0, 2, 3, 1))[0]
