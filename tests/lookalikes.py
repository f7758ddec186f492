"""Modules with the parameter names, attributes and outputs of others' Conformers, made of the reference model's parts.

Only names and structures are theirs; the maths is the reference's. Each keeps the reference model it is made of as
`reference`, outside its parameters.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from torch import Tensor, nn

from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer, ConvTransBlock, TransformerBlock

recipe_tensor = runpy.run_path(str(Path(__file__).parent / "data" / "recipe.py"))["tensor"]

STEM = ("conv1", "bn1", "conv_1", "trans_patch_conv")


def fill(model: nn.Module, salt: str = "") -> nn.Module:
    """Gives a lookalike, or a reference model, the recipe's values by official name. Returns the model."""
    reference = model if isinstance(model, Conformer) else model.reference
    for name, tensor in reference.state_dict().items():
        tensor.copy_(torch.from_numpy(recipe_tensor(name, tuple(tensor.shape), salt)))
    return model


class _MadeOfReference(nn.Module):
    """Names the reference's parts anew. They stay shared, so loading, filling and casting reach both."""

    def __init__(self, reference: Conformer) -> None:
        super().__init__()
        self._reference = (reference,)  # in a tuple, so that nn.Module does not count its parameters

    @property
    def reference(self) -> Conformer:
        return self._reference[0]

    def adopt(self, *names: str) -> None:
        for name in names:
            self.add_module(name, self.reference.get_submodule(name))


class OfficialConformer(_MadeOfReference):
    """The official repository's module. images (B, 3, H, W) -> [conv_logits, trans_logits], each (B, classes)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(Conformer(config, pad="none"))
        self.cls_token = self.reference.cls_token
        self.adopt("trans_norm", "trans_cls_head", "conv_cls_head", *STEM, "trans_1")
        for index in range(2, config.depth + 1):
            self.add_module(f"conv_trans_{index}", _official_block(self.reference.get_submodule(f"conv_trans_{index}")))

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.reference(images))


class MMDetectionBackbone(_MadeOfReference):
    """The mmdetection fork's backbone: official names, neither heads nor trans_norm.

    images (B, 3, H, W) -> CNN maps after `config.feature_blocks`, each (B, K, H', W').
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(Conformer(config, features_only=True))
        self.cls_token = self.reference.cls_token
        self.adopt(*STEM, "trans_1")
        for index in range(2, config.depth + 1):
            self.add_module(f"conv_trans_{index}", _official_block(self.reference.get_submodule(f"conv_trans_{index}")))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.reference(images).maps


class MMPretrainBackbone(_MadeOfReference):
    """mmpretrain's Conformer backbone.

    images (B, 3, H, W) -> for each block in out_indices, in block order, [pooled map (B, K), class token (B, C)].
    Negative indices count from the end; 0 and 1 give nothing, as there.
    """

    def __init__(self, config: ConformerConfig, out_indices: int | list[int] = -1) -> None:
        super().__init__(Conformer(config))
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        self.out_indices = [index if index >= 0 else config.depth + 1 + index for index in indices]
        self.depths, self.embed_dims = config.depth, config.embed_dim
        self.num_heads, self.channel_ratio = config.num_heads, config.channel_ratio
        self.cls_token = self.reference.cls_token
        self.adopt(*STEM)
        self.trans_1 = _mmpretrain_transformer(self.reference.trans_1)
        for index in range(2, config.depth + 1):
            block = self.reference.get_submodule(f"conv_trans_{index}")
            self.add_module(f"conv_trans_{index}", _mmpretrain_block(block))
        self.adopt("trans_norm")

    def train(self, mode: bool = True) -> None:
        """Returns nothing, as mmpretrain's: `backbone.eval()` is None there."""
        super().train(mode)

    def forward(self, images: Tensor) -> tuple[list[Tensor], ...]:
        outputs: list[list[Tensor]] = []

        def keep(block: nn.Module, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
            feature_map, tokens = output
            outputs.append([feature_map.mean((-2, -1)), self.reference.trans_norm(tokens)[:, 0]])

        blocks = [self.reference.get_submodule(f"conv_trans_{i}") for i in set(self.out_indices) - {0, 1}]
        hooks = [block.register_forward_hook(keep) for block in blocks]
        self.reference.forward_features(images)
        for hook in hooks:
            hook.remove()
        return tuple(outputs)


class MMPretrainHead(nn.Module):
    """mmpretrain's ConformerHead. The last of the backbone's outputs -> (conv_score, trans_score)."""

    def __init__(self, reference: Conformer) -> None:
        super().__init__()
        self.conv_cls_head, self.trans_cls_head = reference.conv_cls_head, reference.trans_cls_head

    def forward(self, features: tuple[list[Tensor], ...]) -> tuple[Tensor, Tensor]:
        pooled, class_token = features[-1]
        return self.conv_cls_head(pooled), self.trans_cls_head(class_token)


class MMPretrainClassifier(nn.Module):
    """mmpretrain's ImageClassifier. images (B, 3, H, W) -> (conv_score, trans_score), each (B, classes)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.backbone = MMPretrainBackbone(config)
        self.neck = None
        self.head = MMPretrainHead(self.backbone.reference)

    @property
    def reference(self) -> Conformer:
        return self.backbone.reference

    def forward(self, inputs: Tensor, data_samples: None = None, mode: str = "tensor") -> tuple[Tensor, Tensor]:
        if mode != "tensor":
            raise RuntimeError(f"this lookalike has mode 'tensor' only, not {mode!r}")
        return self.head(self.backbone(inputs))


def _official_block(block: ConvTransBlock) -> nn.Module:
    """The same parts in the order in which the official block registers them."""
    ordered = nn.Module()
    for name in ("cnn_block", "fusion_block", "squeeze_block", "expand_block", "trans_block"):
        ordered.add_module(name, block.get_submodule(name))
    return ordered


def _mmpretrain_block(block: ConvTransBlock) -> nn.Module:
    renamed = _official_block(block)
    renamed.trans_block = _mmpretrain_transformer(block.trans_block)
    return renamed


def _mmpretrain_transformer(block: TransformerBlock) -> nn.Module:
    renamed = nn.Module()
    renamed.ln1, renamed.attn, renamed.ln2 = block.norm1, block.attn, block.norm2
    first = nn.Sequential(block.mlp.fc1, nn.GELU(), nn.Dropout(0.0))
    renamed.ffn = nn.Module()
    renamed.ffn.layers = nn.Sequential(first, block.mlp.fc2, nn.Dropout(0.0))
    return renamed
