"""The reference model as a backend: what every other one is compared with, and what runs where nothing faster does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from conformer_fast.inference.lower import Lowered
from conformer_fast.model.detector.detect import Networks
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.outputs import COUPLING, observed_outputs, reference_outputs
from conformer_fast.model.reference import Conformer

from .base import Backend, Precisions, Settings
from .ceiling import Ceiling, by_pytorch


@dataclass(frozen=True)
class Reference(Backend):
    """PyTorch on the CPU, in fp32, without any rewrite."""

    name: ClassVar[str] = "reference"
    hardware: ClassVar[str] = "CPU"
    device_type: ClassVar[str] = "cpu"

    def missing(self) -> str | None:
        return None

    def precisions(self) -> Precisions:
        return Precisions(("fp32",))

    def ceiling(self, precision: str, device: str) -> Ceiling | None:
        return by_pytorch(precision, device)

    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> ReferenceEngine:
        assert isinstance(reference, Conformer)  # a detector is whole here
        return ReferenceEngine(reference, outputs)

    def whole(self, detector: Detector) -> Networks:
        return detector


class ReferenceEngine:
    """The reference model behind an engine's interface."""

    def __init__(self, model: Conformer, outputs: Sequence[str]) -> None:
        self._model, self._outputs = model, tuple(outputs)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if any(name.endswith(COUPLING) for name in self._outputs):
                return observed_outputs(copy.deepcopy(self._model), images.float(), self._outputs)
            return reference_outputs(self._model, images.float(), self._outputs)
