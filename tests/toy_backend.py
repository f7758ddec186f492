"""A backend as somebody would add one: the inference network in PyTorch, some images at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Format, Manifest
from conformer_fast.engines.base import Backend, Contents, Engine, Precisions, Settings
from conformer_fast.inference.lower import blank, lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.model.reference import Conformer

WEIGHTS = "toy.safetensors"


@dataclass(frozen=True)
class Toy(Backend):
    """at_once: how many images run together"""

    at_once: int = 2

    name: ClassVar[str] = "toy"
    hardware: ClassVar[str] = "toy"
    device_type: ClassVar[str] = "cpu"
    format: ClassVar[Format] = Format((WEIGHTS,), {"torch": str}, read_once=(WEIGHTS,))

    def missing(self) -> str | None:
        return None

    def precisions(self) -> Precisions:
        return Precisions(("fp32",))

    def engine(self, reference: Conformer, settings: Settings, outputs: Sequence[str]) -> ToyEngine:
        return ToyEngine(lower(reference, outputs), self.at_once)

    def contents(
        self,
        reference: Conformer,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        weights = {name: tensor.contiguous() for name, tensor in lower(reference, outputs).state_dict().items()}
        return Contents(
            {WEIGHTS: safetensors.torch.save(weights)}, {"all": settings.precision}, {"torch": str(torch.__version__)}
        )

    def fits(self, manifest: Manifest) -> str:
        return self.torch_device()

    def restore(self, bundle: StoredEngine, settings: Settings, key: bytes | None) -> ToyEngine:
        weights = safetensors.torch.load(bundle.read(WEIGHTS))
        network = blank(
            bundle.manifest.config, bundle.manifest.outputs, "fp32", heads="conv_head.weight" in weights, norm=True
        )
        network.load_state_dict(weights, assign=True)
        return ToyEngine(network, self.at_once)


class ToyEngine:
    """images (B, in_channels, H, W) -> one fp32 tensor (B, ...) per output"""

    def __init__(self, network: InferenceConformer, at_once: int) -> None:
        self.network, self.at_once = network, at_once

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            parts = [self.network(part.float()) for part in images.split(self.at_once)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))
