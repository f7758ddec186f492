"""The reference model rewritten for inference: every algebraic rewrite, once. All are exact up to rounding.

1. Batch norms are folded into the convolution before them (`fold_batch_norm`).
2. FCU-down pools before its 1x1 projection: both are linear, so they commute, and S * S fewer products remain. The
   convolution before it returns its map pooled too.
3. FCU-up projects and activates at token resolution; no upsampled map is written, conv3x3 reads [h // S, w // S].
4. The attention scale is folded into the query rows of the joint projection (`fold_attention_scale`).
5. The class token's doubling in each coupled block is explicit in `fcu_down`.
6. Only the class row of the last token norm is computed.
7. Both heads are one operation.

The result is a plain module of operators (ops.py) on channels-last maps. Its weights are buffers: nothing trains here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import ops
from .config import ConformerConfig
from .model import Bottleneck, Conformer, ConvTransBlock, FCUDown, FCUUp, TransformerBlock
from .streams import beside, join

LOGITS = ("conv_logits", "trans_logits")
SUM = "logits"


def feature_names(config: ConformerConfig) -> tuple[str, ...]:
    """The outputs that ConformerFeatures holds: the maps after `config.feature_blocks` and the last tokens."""
    return (*(f"{block}.map" for block in config.feature_blocks), f"{config.depth}.tokens")


def fuse(model: Conformer) -> InferenceConformer:
    """The inference model of `model`, which is left untouched and shares no memory with it.

    Raises ValueError if any part is in training mode: its batch norms would then not be the ones folded.
    """
    if any(part.training for part in model.modules()):
        raise ValueError("fuse: the model, or a part of it, is in training mode; call model.eval() first")
    with torch.no_grad():
        return InferenceConformer(model).requires_grad_(False).eval()


def blank(config: ConformerConfig, dtype: torch.dtype, *, heads: bool, norm: bool) -> InferenceConformer:
    """An inference model on the meta device: every weight's name, shape and type, and no values.

    dtype: as in `InferenceConformer.in_precision`
    heads: whether it has the two classifiers, and so their norm; norm: whether it has the norm alone
    """
    with torch.device("meta"), _Unfilled():
        model = Conformer(config, features_only=not heads)
        if norm and not heads:
            model.trans_norm = nn.LayerNorm(config.embed_dim)
    return fuse(model.eval())._cast(dtype)


class _Unfilled(TorchFunctionMode):
    """Inside, tensors are made but not filled: on the meta device too, PyTorch takes long for that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, kwargs or {}
        if name.endswith("_") and not name.endswith("__"):  # in place
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func in (torch.ones, torch.zeros) else func)(*args, **kwargs)


class InferenceConformer(nn.Module):
    """images (B, in_channels, H, W) -> a tuple of the tensors named in `outputs`.

    Names: "conv_logits", "trans_logits" and "logits", their sum, each (B, classes); for a block k "k.map" (B, K, H, W),
    "k.tokens" (B, T, C), "k.pooled" (B, K) and "k.class_token" (B, C); inside coupled blocks "k.fcu_down" (B, T, C),
    the transformer's input, and "k.fcu_up" (B, N, K), the convolution's addition at token resolution. See
    `output_names`.
    """

    def __init__(self, model: Conformer) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.outputs: tuple[str, ...] = feature_names(config) if model.features_only else LOGITS
        self.stem = Weights(*fold_batch_norm(model.conv1, model.bn1))
        self.cls_token = nn.Buffer(model.cls_token.clone())
        assert model.trans_patch_conv.bias is not None
        self.patch_embed = Weights(model.trans_patch_conv.weight, model.trans_patch_conv.bias)
        self.conv_1 = InferenceBottleneck(model.conv_1)
        self.trans_1 = InferenceTransformer(model.trans_1)
        for index in range(2, config.depth + 1):
            self.add_module(f"conv_trans_{index}", InferenceBlock(model.coupled_block(index)))
        self.norm = Norm(model.trans_norm) if hasattr(model, "trans_norm") else None
        if not model.features_only:
            self.conv_head = Weights(model.conv_cls_head.weight, model.conv_cls_head.bias)
            self.trans_head = Weights(model.trans_cls_head.weight, model.trans_cls_head.bias)

    def with_outputs(self, outputs: Sequence[str]) -> InferenceConformer:
        """The same model, sharing its weights, returning these outputs.

        Raises ValueError for an unknown name, a name given twice, or none.
        """
        unknown = [name for name in outputs if name not in self.output_names]
        if unknown:
            raise ValueError(f"no such outputs: {unknown}; this model has {', '.join(self.output_names)}")
        if len(set(outputs)) != len(outputs) or not outputs:
            raise ValueError(f"outputs must be one or more different names, got {list(outputs)}")
        other = nn.Module.__new__(type(self))
        other.__dict__ = self.__dict__.copy()
        other.outputs = tuple(outputs)
        return other

    def in_precision(self, dtype: torch.dtype) -> InferenceConformer:
        """A copy whose products and maps are in `dtype`, and whose tokens and norms are in float32.

        The class token doubles in each coupled block, beyond what float16 may hold, and each residual sum would round
        it again. Convolutions keep their weights in the memory order of channels-last maps.
        """
        return copy.deepcopy(self)._cast(dtype)

    def _cast(self, dtype: torch.dtype) -> InferenceConformer:
        """`in_precision`, of this model itself."""
        self.float()
        for part in self.modules():
            if isinstance(part, Weights):
                part.to(dtype)
                if part.weight.ndim == 4:
                    part.weight = nn.Buffer(part.weight.contiguous(memory_format=torch.channels_last))
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every name that `outputs` may hold."""
        kinds = ("map", "tokens") if self.norm is None else ("map", "tokens", "pooled", "class_token")
        blocks = range(1, self.config.depth + 1)
        names = [f"{index}.{kind}" for index in blocks for kind in kinds]
        names += [f"{index}.{kind}" for index in blocks[1:] for kind in ("fcu_down", "fcu_up")]
        return (*LOGITS, SUM, *names) if hasattr(self, "conv_head") else tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        wanted, found = set(self.outputs), {}
        config = self.config

        def keep(name: str, value: Tensor) -> None:
            if name in wanted:
                found[name] = value

        stem_map = ops.stem(images, *self.stem(), config.stem_stride)  # (B, H / 4, W / 4, 64)
        with beside():
            feature_map = self.conv_1(stem_map)
        tokens = self.trans_1(ops.patch_embed(stem_map, self.cls_token, *self.patch_embed()))
        join()
        for index in range(1, config.depth + 1):
            if index > 1:
                feature_map, tokens, down, up = self.get_submodule(f"conv_trans_{index}")(feature_map, tokens)
                keep(f"{index}.fcu_down", down)
                keep(f"{index}.fcu_up", up)
                del down, up  # their memory is free for the next block
            keep(f"{index}.tokens", tokens)
            if f"{index}.map" in wanted:
                keep(f"{index}.map", feature_map.permute(0, 3, 1, 2))
            if self.norm is not None and {f"{index}.pooled", f"{index}.class_token"} & wanted:
                pooled, class_token = ops.pool(feature_map, tokens, *self.norm())
                keep(f"{index}.pooled", pooled)
                keep(f"{index}.class_token", class_token)
        if self.norm is not None and wanted & {*LOGITS, SUM}:
            conv, trans, both = ops.heads(feature_map, tokens, *self.norm(), *self.conv_head(), *self.trans_head())
            keep("conv_logits", conv)
            keep("trans_logits", trans)
            keep(SUM, both)
        return tuple(found[name] for name in self.outputs)


class Weights(nn.Module):
    """A product's weight and bias; calling it returns both."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(weight.detach().clone()), nn.Buffer(bias.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


class Norm(nn.Module):
    """A layer norm's weight, bias and eps; calling it returns all three."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = nn.Buffer(norm.weight.detach().clone()), nn.Buffer(norm.bias.detach().clone())
        self.eps = norm.eps

    def forward(self) -> tuple[Tensor, Tensor, float]:
        return self.weight, self.bias, self.eps


class InferenceBottleneck(nn.Module):
    """(B, H, W, K) -> (B, H', W', K'), in three steps that a coupled block calls one by one."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.stride = block.conv2.stride[0]
        self.conv1 = Weights(*_as_matrix(*fold_batch_norm(block.conv1, block.bn1)))
        self.conv2 = Weights(*fold_batch_norm(block.conv2, block.bn2))
        self.conv3 = Weights(*_as_matrix(*fold_batch_norm(block.conv3, block.bn3)))
        self.residual = None
        if block.project:
            self.residual = Weights(*_as_matrix(*fold_batch_norm(block.residual_conv, block.residual_bn)))

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.expand(self.spatial(self.reduce(feature_map)), feature_map)

    def reduce(self, feature_map: Tensor) -> Tensor:
        return ops.conv1x1(feature_map, *self.conv1())

    def spatial(self, inner: Tensor, token_map: Tensor | None = None, token_stride: int = 1) -> Tensor:
        return ops.conv3x3(inner, *self.conv2(), self.stride, token_map, token_stride)

    def spatial_and_pooled(self, inner: Tensor, token_stride: int) -> tuple[Tensor, Tensor]:
        """`spatial` and its mean over each token's pixels, which FCU-down reads."""
        if token_stride > 1:
            return ops.conv3x3_pool(inner, *self.conv2(), self.stride, token_stride)
        inner = self.spatial(inner)
        return inner, inner

    def expand(self, inner: Tensor, feature_map: Tensor) -> Tensor:
        residual = feature_map
        if self.residual is not None:
            residual = ops.conv1x1(feature_map, *self.residual(), self.stride, relu=False)
        return ops.conv1x1(inner, *self.conv3(), residual=residual)


class InferenceTransformer(nn.Module):
    """(B, T, C) -> (B, T, C)."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.num_heads = block.attn.num_heads
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv = Weights(*fold_attention_scale(block.attn.qkv, block.attn.num_heads))
        self.proj = Weights(block.attn.proj.weight, block.attn.proj.bias)
        self.fc1 = Weights(block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc2 = Weights(block.mlp.fc2.weight, block.mlp.fc2.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = ops.linear(tokens, *self.qkv(), False, None, *self.norm1())  # (B, T, 3C)
        tokens = ops.linear(ops.attention(qkv, self.num_heads, 1.0), *self.proj(), residual=tokens)
        hidden = ops.linear(tokens, *self.fc1(), True, None, *self.norm2())
        return ops.linear(hidden, *self.fc2(), residual=tokens)


class InferenceBlock(nn.Module):
    """(B, H, W, K), (B, T, C) -> the same of the next block, and what the two coupling units passed on."""

    def __init__(self, block: ConvTransBlock) -> None:
        super().__init__()
        self.cnn_block = InferenceBottleneck(block.cnn_block)
        self.down = InferenceFCUDown(block.squeeze_block)
        self.trans_block = InferenceTransformer(block.trans_block)
        self.up = _fcu_up(block.expand_block)
        self.token_stride = block.expand_block.stride
        self.fusion_block = InferenceBottleneck(block.fusion_block)

    def forward(self, feature_map: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inner = self.cnn_block.reduce(feature_map)
        inner, pooled = self.cnn_block.spatial_and_pooled(inner, self.token_stride)
        with beside():
            cnn_map = self.cnn_block.expand(inner, feature_map)
            fusion = self.fusion_block.reduce(cnn_map)
        down = self.down(pooled, tokens)
        tokens = self.trans_block(down)
        up = ops.fcu_up(tokens, *self.up())
        join()
        fusion = self.fusion_block.spatial(fusion, up, self.token_stride)
        return self.fusion_block.expand(fusion, cnn_map), tokens, down, up


class InferenceFCUDown(nn.Module):
    """The map at token resolution (B, h, w, K) and tokens (B, T, C) -> the transformer block's input (B, T, C)."""

    def __init__(self, unit: FCUDown) -> None:
        super().__init__()
        assert unit.conv_project.bias is not None
        self.project = Weights(*_as_matrix(unit.conv_project.weight, unit.conv_project.bias))
        self.norm = Norm(unit.ln)

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        return ops.fcu_down(pooled, tokens, *self.project(), *self.norm(), stride=1)


def _fcu_up(unit: FCUUp) -> Weights:
    return Weights(*_as_matrix(*fold_batch_norm(unit.conv_project, unit.bn)))


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution equal to norm(conv(x)), folded in float64. Of meta tensors, their shapes."""
    if conv.weight.is_meta:
        return conv.weight, norm.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)


def fold_attention_scale(qkv: nn.Linear, num_heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the joint projection with its query rows multiplied by 1 / sqrt(head size).

    Of meta tensors, their shapes.
    """
    if qkv.weight.is_meta:
        return qkv.weight, qkv.bias
    dim = qkv.in_features
    scale = torch.ones(3 * dim, dtype=torch.float64, device=qkv.weight.device)
    scale[:dim] = (dim // num_heads) ** -0.5
    weight, bias = qkv.weight.double() * scale[:, None], qkv.bias.double() * scale
    return weight.to(qkv.weight.dtype), bias.to(qkv.bias.dtype)


def _as_matrix(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution's weight as a matrix. (C, K, 1, 1) -> (C, K)."""
    return weight.flatten(1), bias
