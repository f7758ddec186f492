"""The compiled backbone for mmdetection 3: importing this registers it as type="ConformerFast".

In a config:

    custom_imports = dict(imports=["conformer_fast.mmdet"])
    model = dict(
        backbone=dict(type="ConformerFast", variant="small-p32"), neck=dict(in_channels=[256, 512, 1024, 1024]), ...
    )

Its parameters have the official names, so a detector's checkpoint loads into it as into the fork's backbone.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

try:
    from mmdet.registry import MODELS
except ImportError as error:
    raise ImportError(f"conformer_fast.mmdet is for mmdetection 3, which cannot be imported ({error})") from error

from .checkpoints.weights import load_weights
from .deploy.compile import compile
from .deploy.fast_conformer import FastConformer
from .engines.registry import choose
from .model.config import ConformerConfig, get_config
from .model.reference import Conformer


@MODELS.register_module()
class ConformerFast(Conformer):
    """images (B, 3, H, W) -> the CNN maps after blocks 4, 8, 11 and 12, strides 4 to 32.

    In training mode and where gradients are wanted it is the reference; else it is compiled at the first call, again
    after a `load_state_dict` or `train()`. Its results are on the images' device.

    variant:            a name or a configuration, as `create_model` takes it
    weights:            a checkpoint's path that `init_weights` loads; None: what mmdetection loads
    backend, precision: as `compile` takes them
    init_cfg:           mmdetection's, left alone: the weights say what they are

    Raises ArgumentError and BackendError for what cannot be, before anything is computed.
    """

    def __init__(
        self,
        variant: str | ConformerConfig = "small-p32",
        weights: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        precision: str = "auto",
        init_cfg: Any = None,
    ) -> None:
        super().__init__(get_config(variant), features_only=True)
        choose(backend, precision)
        self._weights, self._options = weights, {"backend": backend, "precision": precision}
        self._compiled: tuple[FastConformer, ...] = ()  # in a tuple, so that it is no part of this module
        self.register_load_state_dict_post_hook(_start_anew)

    def init_weights(self) -> None:
        """What mmdetection calls before training, or before it loads a detector's checkpoint."""
        if self._weights is not None:
            load_weights(self, self._weights)
            self._compiled = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # as mmdetection's backbones
        if self.training or (torch.is_grad_enabled() and images.requires_grad):
            return self.forward_features(images).maps
        if not self._compiled:
            self._compiled = (compile(self._reference(), **self._options),)
        (fast,) = self._compiled
        maps = fast(images.detach().to(fast.device)).maps
        return tuple(feature_map.to(images.device, images.dtype) for feature_map in maps)

    def train(self, mode: bool = True) -> ConformerFast:
        if mode:
            self._compiled = ()
        super().train(mode)
        return self

    def _reference(self) -> Conformer:
        reference = Conformer(self.config, features_only=True, pad=self.pad).eval()
        reference.load_state_dict(self.state_dict())
        return reference


def _start_anew(backbone: ConformerFast, found: Any) -> None:
    backbone._compiled = ()
