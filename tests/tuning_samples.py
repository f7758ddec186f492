"""What the tests of offline tuning share: a small network, a timer that gives chosen times, and tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from kernel_checks import DEVICE
from torch import Tensor, nn

from conformer_fast.inference import ops
from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.weights import Weights
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.tiles import Tile

GPU = "NVIDIA Test"  # what the GPU here is called, so that no other test's tables and none that ships are its
RULE, FAST, SLOW, BAD = (Tile(m, 64, 32, 4, 3) for m in (64, 32, 128, 256))


class Net(InferenceNetwork):
    """Three products, of which two pose the same problem."""

    def __init__(self, dtype: torch.dtype = torch.float16, channels: int = 20) -> None:
        super().__init__()
        self.channels = channels
        square, wide = torch.randn(channels, channels, device=DEVICE), torch.randn(33, channels, device=DEVICE)
        self.stem, self.second = (Weights(square / 4, square[0]).to(dtype) for _ in range(2))
        self.last = Weights(wide / 4, wide[:, 0]).to(dtype)

    output_names, last_products = (), ()

    @property
    def second_dimension(self) -> int:
        return self.channels

    def forward(self, images: Tensor) -> Tensor:
        feature_map = images.permute(0, 2, 3, 1)
        feature_map = ops.conv1x1(ops.conv1x1(feature_map, *self.stem()), *self.second())
        return ops.conv1x1(feature_map, *self.last(), relu=False)


class FakeTimer:
    """Gives each candidate the same time, those in `seconds` another, in every round. Keeps what it was asked."""

    def __init__(self, seconds: Mapping[Any, float] = {}) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, candidates):
        self.asked.append(candidates)
        return {candidate: [self.seconds.get(candidate, 1.0)] * 5 for candidate in candidates}


def problems(model: nn.Module, images: Tensor) -> list[dispatch.Call]:
    with dispatch.calls() as made:
        model(images)
    return made
