"""The networks of a detector as engines, one for each of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from conformer_fast.errors import ArgumentError, first_few
from conformer_fast.inference.detector import outputs_of, parts_of
from conformer_fast.model.detector.config import LEVELS, DetectorConfig
from conformer_fast.model.detector.detect import PYTORCH, Operators
from conformer_fast.model.detector.parts import Proposed
from conformer_fast.model.detector.reference import Detector

from .base import Backend, Engine, Settings

ROWS = 4  # lengths of what the box head reads: as many as OpenVINO's engine has sizes of its own


def part_settings(detector: Detector, settings: Settings) -> dict[str, Settings]:
    """What each part runs with, by its name: the same, with its own products' quantization.

    Raises ArgumentError for a quantization of another model's products.
    """
    parts, quantization = parts_of(detector), settings.quantization
    if quantization is None:
        return dict.fromkeys(parts, settings)
    named = [*quantization.ranges, *quantization.smoothing]
    unknown = [name for name in named if name.partition(".")[0] not in parts]
    if unknown:
        raise ArgumentError(
            f"the quantization has ranges of {first_few(unknown)}, which this detector does not have; calibrate it on "
            f"this one"
        )
    return {name: replace(settings, quantization=quantization.part(name)) for name in parts}


def engine_networks(backend: Backend, detector: Detector, settings: Settings) -> EngineNetworks:
    """A detector's networks as this backend's engines. Raises what `part_settings` does."""
    own = part_settings(detector, settings)
    engines = {name: backend.engine(part, own[name], outputs_of(name)) for name, part in parts_of(detector).items()}
    return EngineNetworks(engines, detector.config)


class EngineNetworks:
    """What `detect` computes with.

    engines:   of the parts, by the names of `parts_of`, with the outputs of `outputs_of`
    operators: what is computed between them
    """

    def __init__(self, engines: Mapping[str, Engine], config: DetectorConfig, operators: Operators = PYTORCH) -> None:
        self.engines, self.operators = engines, operators
        self._most, self._classes = config.proposals, config.num_classes

    def propose(self, images: Tensor) -> Proposed:
        found = [value.permute(0, 3, 1, 2) for value in self.engines["proposer"](images)]
        return Proposed(tuple(found[:LEVELS]), tuple(found[LEVELS:]))

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Regions are the pixels of one row, as long as one of ROWS, so that few engines take them."""
        features = features.permute(0, 2, 3, 1).flatten(1)
        step = -(-self._most // ROWS)
        length = max(1, -(-len(features) // step)) * step
        row = torch.zeros(1, 1, length, features.shape[1], dtype=torch.float32, device=features.device)
        row[0, 0, : len(features)] = features
        (found,) = self.engines["boxes"](row)
        values = found[0, 0, : len(features)]
        return values[:, : self._classes + 1], values[:, self._classes + 1 :].contiguous()

    def masks(self, features: Tensor) -> Tensor:
        if not len(features):  # an engine takes no empty batch
            side = 2 * features.shape[-1]
            return features.new_empty(0, self._classes, side, side)
        return self.engines["masks"](features.permute(0, 2, 3, 1))[0]
