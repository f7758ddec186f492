"""The networks of a detector as engines, one for each of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from conformer_fast.errors import ArgumentError, first_few
from conformer_fast.inference.detector import outputs_of, parts_of, split_regions
from conformer_fast.model.detector.config import (
    BOX_SIDE,
    LEVELS,
    MASK_SIDE,
    MULTIPLE,
    DetectorConfig,
    edges_for,
)
from conformer_fast.model.detector.detect import PYTORCH, Operators
from conformer_fast.model.detector.parts import BoxHead, MaskHead, Proposed, Proposer
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.shapes import Shapes

from .base import Engine, Settings

ROWS = 4  # lengths of what the box head reads: as many as OpenVINO's engine has sizes of its own


def part_settings(detector: Detector, settings: Settings) -> dict[str, Settings]:
    """What each part runs with, by its name: the same, with its own products' quantization and its inputs' shapes.

    Raises ArgumentError for a quantization of another model's products.
    """
    parts, quantization = parts_of(detector), settings.quantization
    own = {name: replace(settings, backend=settings.backend.for_model(part)) for name, part in parts.items()}
    if quantization is None:
        return own
    named = [*quantization.ranges, *quantization.smoothing]
    unknown = [name for name in named if name.partition(".")[0] not in parts]
    if unknown:
        raise ArgumentError(
            f"the quantization has ranges of {first_few(unknown)}, which this detector does not have; calibrate it on "
            f"this one"
        )
    return {name: replace(one, quantization=quantization.part(name)) for name, one in own.items()}


def engine_networks(detector: Detector, settings: Settings) -> EngineNetworks:
    """A detector's networks as engines of these settings. Raises what `part_settings` does."""
    own = part_settings(detector, settings)
    engines = {
        name: own[name].backend.engine(part, own[name], outputs_of(name)) for name, part in parts_of(detector).items()
    }
    return EngineNetworks(engines, detector.config, settings.backend.operators(settings.device))


def shapes_for(part: Proposer | BoxHead | MaskHead, images: Sequence[Shapes]) -> tuple[Shapes, ...]:
    """What the engine of a part takes that is built for certain shapes.

    images: of the detector's; none: single ones of any picture that is fitted, tuned for wide ones

    Raises ArgumentError unless the images' sides are multiples of 32.
    """
    config = part.config
    if isinstance(part, BoxHead):
        step = row_step(config)
        return (Shapes((1, 1, 1), (step, step * ROWS, step * ROWS), (config.channels * BOX_SIDE**2,) * 3),)
    if isinstance(part, MaskHead):
        return (Shapes((1, config.detections, config.detections), (MASK_SIDE,) * 3, (config.channels,) * 3),)
    for shapes in images:
        wrong = [side for side in (*shapes.height, *shapes.width) if side % MULTIPLE]
        if wrong:
            raise ArgumentError(
                f"a detector's images have sides of multiples of {MULTIPLE}, got {wrong[0]} in {shapes}"
            )
    return tuple(images) or (pictures_of(part.size),)


def pictures_of(size: int | None) -> Shapes:
    """Of one picture that is fitted to this size of a recipe."""
    long, short = (-(-edge // MULTIPLE) * MULTIPLE for edge in edges_for(size))
    return Shapes((1, 1, 1), (MULTIPLE, short, long), (MULTIPLE, long, long))


def row_step(config: DetectorConfig) -> int:
    """Regions by which the rows of the box head differ in length."""
    return -(-config.proposals // ROWS)


class EngineNetworks:
    """What `detect` computes with.

    engines:   of the parts, by the names of `parts_of`, with the outputs of `outputs_of`
    operators: what is computed between them
    """

    def __init__(self, engines: Mapping[str, Engine], config: DetectorConfig, operators: Operators = PYTORCH) -> None:
        self.engines, self.operators = engines, operators
        self._step, self._classes = row_step(config), config.num_classes

    def propose(self, images: Tensor) -> Proposed:
        found = [value.permute(0, 3, 1, 2) for value in self.engines["proposer"](images)]
        return Proposed(tuple(found[:LEVELS]), tuple(found[LEVELS:]))

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Regions are the pixels of one row, as long as one of ROWS, so that few engines take them."""
        features = features.permute(0, 2, 3, 1).flatten(1)
        length = max(1, -(-len(features) // self._step)) * self._step
        row = features[None, None]
        if len(features) < length:
            row = features.new_zeros(1, 1, length, features.shape[1])
            row[0, 0, : len(features)] = features
        (found,) = self.engines["boxes"](row)
        return split_regions(found[0, 0, : len(features)], self._classes)

    def masks(self, features: Tensor) -> Tensor:
        if not len(features):  # an engine takes no empty batch
            side = 2 * features.shape[-1]
            return features.new_empty(0, self._classes, side, side)
        return self.engines["masks"](features.permute(0, 2, 3, 1))[0]
