"""The reference vision Conformer (arXiv 2105.03889): it defines correctness, everything faster is measured against it.

Parameter names are those of the official implementation, so its checkpoints load as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentTypeError, one_of, shown, truth
from .config import EXPANSION, STEM_CHANNELS, ConformerConfig
from .functional import attention
from .recipe import Recipe, checked
from .shapes import Pad, check_image_size

NORM_EPS = 1e-6  # of every block and coupling unit; the stem's norm and the last token norm keep PyTorch's 1e-5


class ConformerOutput(NamedTuple):
    """The two heads' scores, each (B, num_classes). The model's score is their sum."""

    conv_logits: Tensor
    trans_logits: Tensor

    @property
    def logits(self) -> Tensor:
        return self.conv_logits + self.trans_logits

    @property
    def probabilities(self) -> Tensor:
        return self.logits.softmax(-1)


class ConformerFeatures(NamedTuple):
    """maps: the CNN maps (B, K, H, W) after `config.feature_blocks`; tokens: (B, 1 + N, C) after the last block."""

    maps: tuple[Tensor, ...]
    tokens: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        head_dim = tokens.shape[-1] // self.num_heads
        return self.proj(attention(self.qkv(tokens), self.num_heads, head_dim**-0.5))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)). (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.mlp = Mlp(config.embed_dim, config.mlp_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual. (B, K, H, W) -> (B, K', H', W').

    `forward` takes the transformer's contribution (upsampled, in the inner channels), which is added before the 3x3
    convolution, and returns the map together with the inner map after the 3x3, which FCU-down reads.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        inner = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.project = project
        if project:
            self.residual_conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.residual_bn = nn.BatchNorm2d(out_channels, eps=NORM_EPS)

    def forward(self, feature_map: Tensor, from_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = F.relu(self.bn1(self.conv1(feature_map)))
        if from_tokens is not None:
            inner = inner + from_tokens
        inner = F.relu(self.bn2(self.conv2(inner)))
        residual = self.residual_bn(self.residual_conv(feature_map)) if self.project else feature_map
        return F.relu(self.bn3(self.conv3(inner)) + residual), inner


class FCUDown(nn.Module):
    """Feature Coupling Unit, CNN to transformer (section 3.2). (B, K, H, W) -> (B, N, C), N = (H // S) * (W // S)."""

    def __init__(self, channels: int, embed_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(channels, embed_dim, 1)
        self.ln = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def forward(self, feature_map: Tensor) -> Tensor:
        patches = F.avg_pool2d(self.conv_project(feature_map), self.stride)  # (B, C, H // S, W // S)
        return F.gelu(self.ln(map_to_tokens(patches)))


class FCUUp(nn.Module):
    """Feature Coupling Unit, transformer to CNN. (B, 1 + N, C) -> (B, K, H, W), H x W the map's size."""

    def __init__(self, channels: int, embed_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(embed_dim, channels, 1)
        self.bn = nn.BatchNorm2d(channels, eps=NORM_EPS)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        B, _, C = tokens.shape
        token_map = tokens[:, 1:].transpose(1, 2).reshape(B, C, height // self.stride, width // self.stride)
        token_map = F.relu(self.bn(self.conv_project(token_map)))  # (B, K, H // S, W // S)
        return F.interpolate(token_map, scale_factor=self.stride)  # nearest: (B, K, H, W)


class ConvTransBlock(nn.Module):
    """One coupled block: bottleneck -> FCU-down -> transformer block -> FCU-up -> bottleneck."""

    def __init__(self, config: ConformerConfig, index: int) -> None:
        super().__init__()
        channels, previous = config.map_channels(index), config.map_channels(index - 1)
        opens_stage, closes_network = channels != previous, index == config.depth
        stride = config.token_stride(index)
        self.cnn_block = Bottleneck(previous, channels, stride=2 if opens_stage else 1, project=opens_stage)
        self.squeeze_block = FCUDown(channels // EXPANSION, config.embed_dim, stride)
        self.trans_block = TransformerBlock(config)
        self.expand_block = FCUUp(channels // EXPANSION, config.embed_dim, stride)
        self.fusion_block = Bottleneck(channels, channels, stride=2 if closes_network else 1, project=closes_network)

    def forward(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        feature_map, inner, coupled = self.couple(feature_map, tokens)
        tokens = self.trans_block(coupled)
        from_tokens = self.expand_block(tokens, inner.shape[-2], inner.shape[-1])
        feature_map, _ = self.fusion_block(feature_map, from_tokens)
        return feature_map, tokens

    def couple(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first bottleneck's map and inner map, and what the transformer block reads: the tokens and FCU-down's."""
        feature_map, inner = self.cnn_block(feature_map)
        # The class token stands in for the missing pooled one, so this addition doubles it.
        squeezed = concat_class_token(tokens[:, :1], self.squeeze_block(inner))
        return feature_map, inner, squeezed + tokens


class Conformer(nn.Module):
    """The vision Conformer: images (B, in_channels, H, W) -> ConformerOutput, or ConformerFeatures with features_only.

    pad="stem" extends the stem map with zeros to whole tokens, as mmpretrain does; pad="none" raises ArgumentError
    then. A features_only model has neither heads nor the norm before them. `recipe` is what it was trained for: what it
    is set to and, of the rest, what a weights file says until load_state_dict overwrites its weights.
    """

    def __init__(self, config: ConformerConfig, features_only: bool = False, pad: Pad = "stem") -> None:
        super().__init__()
        if not isinstance(config, ConformerConfig):
            raise ArgumentTypeError(
                f"a Conformer is made of a ConformerConfig, got {shown(repr(config))}; create_model takes names"
            )
        one_of("pad", pad, ("stem", "none"))
        self.config, self.features_only, self.pad = config, truth("features_only", features_only), pad
        self.recipe = Recipe()
        self.register_load_state_dict_post_hook(_forget_recipe)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.conv1 = nn.Conv2d(config.in_channels, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv_1 = Bottleneck(STEM_CHANNELS, config.map_channels(1), project=True)
        self.trans_patch_conv = nn.Conv2d(
            STEM_CHANNELS, config.embed_dim, config.stem_stride, stride=config.stem_stride
        )
        self.trans_1 = TransformerBlock(config)
        for index in range(2, config.depth + 1):
            self.add_module(f"conv_trans_{index}", ConvTransBlock(config, index))
        if not features_only:
            self.trans_norm = nn.LayerNorm(config.embed_dim)
            self.trans_cls_head = nn.Linear(config.embed_dim, config.num_classes)
            self.conv_cls_head = nn.Linear(config.map_channels(config.depth), config.num_classes)
        self.apply(_initialize)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    @property
    def recipe(self) -> Recipe:
        return self._recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        self._recipe = self._set_recipe = checked(recipe)

    def take_recipe(self, recipe: Recipe) -> None:
        """What a file says of the weights that were loaded from it; it holds for no others. What was set is kept, with
        a warning where the file says otherwise."""
        others = recipe.denies(self._set_recipe)
        if others:
            warnings.warn(
                f"{', '.join(others)} of the recipe as set; the weights' file says otherwise; where that is right: "
                f"model.recipe = Recipe(), and load it again",
                stacklevel=4,
            )
        self._recipe = self._set_recipe.over(recipe)

    def forward(self, images: Tensor) -> ConformerOutput | ConformerFeatures:
        features = self.forward_features(images)
        return features if self.features_only else self.forward_head(features)

    def forward_features(self, images: Tensor) -> ConformerFeatures:
        """The CNN maps after `config.feature_blocks` and the tokens after the last block."""
        maps, tokens = zip(*self.forward_blocks(images), strict=True)
        return ConformerFeatures(tuple(maps[index - 1] for index in self.config.feature_blocks), tokens[-1])

    def forward_blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The CNN map (B, K, H, W) and the tokens (B, 1 + N, C) after each block."""
        check_image_size(images, self.config, self.pad)
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)  # stride 4
        stem = pad_to_multiple(stem, self.config.stem_stride)
        feature_map, _ = self.conv_1(stem)
        patches = map_to_tokens(self.trans_patch_conv(stem))  # (B, N, C)
        tokens = self.trans_1(concat_class_token(self.cls_token, patches))  # (B, 1 + N, C)
        yield feature_map, tokens
        for index in range(2, self.config.depth + 1):
            feature_map, tokens = self.coupled_block(index)(feature_map, tokens)
            yield feature_map, tokens

    def coupled_block(self, index: int) -> ConvTransBlock:
        """Block 2 ... depth; block 1 is `conv_1` and `trans_1`."""
        block = self.get_submodule(f"conv_trans_{index}")
        assert isinstance(block, ConvTransBlock)
        return block

    def forward_head(self, features: ConformerFeatures) -> ConformerOutput:
        """Both heads, from the last map's mean and from the class token."""
        pooled, class_token = self.pool(features.maps[-1], features.tokens)
        return ConformerOutput(self.conv_cls_head(pooled), self.trans_cls_head(class_token))

    def pool(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads read: the map's mean (B, K) and the normalized class token (B, C)."""
        return feature_map.mean((-2, -1)), self.trans_norm(tokens)[:, 0]


def pad_to_multiple(feature_map: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and right until height and width are multiples. (B, K, H, W) -> (B, K, H', W')."""
    H, W = feature_map.shape[-2:]
    return F.pad(feature_map, (0, -W % multiple, 0, -H % multiple))


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def concat_class_token(class_token: Tensor, patch_tokens: Tensor) -> Tensor:
    """(B or 1, 1, C), (B, N, C) -> (B, 1 + N, C)."""
    return torch.cat([class_token.expand(patch_tokens.shape[0], -1, -1), patch_tokens], dim=1)


def _forget_recipe(model: Conformer, found: Any) -> None:
    """Of weights that load_state_dict has overwritten; it may have found none."""
    known = ", ".join(name for name in model.recipe.known() if name not in model._set_recipe.known())
    if known and not _none_loaded(model, set(found.missing_keys)):
        warnings.warn(
            f"other weights were loaded, so what the earlier ones' file said ({known}) is forgotten; where it holds "
            f"for these too, set it: model.recipe = Recipe(...)",
            stacklevel=4,
        )
        model._recipe = model._set_recipe


def _none_loaded(model: Conformer, missing: set[str]) -> bool:
    """Whether all weights are missing, whatever a larger module calls this one."""
    names = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    prefixes = [name.removesuffix("cls_token") for name in missing if name.endswith("cls_token")]
    return any(missing.issuperset(prefix + name for name in names) for prefix in prefixes)


def _initialize(module: nn.Module) -> None:
    """The paper's starting values: truncated normal for products, Kaiming for convolutions, zero for biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
