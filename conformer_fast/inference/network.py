"""The reference model rewritten for inference: every algebraic rewrite, once. All are exact up to rounding.

1. Batch norms are folded into the convolution before them (`fold_batch_norm`).
2. FCU-down pools before its 1x1 projection: both are linear, so they commute, and S * S fewer products remain. The
   convolution before it returns its map pooled too.
3. FCU-up projects and activates at token resolution; no upsampled map is written: the 1x1 convolution that makes the
   map which it is added to reads its entry [h // S, w // S] for pixel [h, w].
4. The attention scale is folded into the query and key rows of the joint projection (`fold_attention_scale`).
5. The class token's doubling in each coupled block is explicit in `fcu_down`.
6. Only the class row of the last token norm is computed.
7. Both heads are one operation.
8. A layer norm is computed by the operation that makes its input, beside it.
9. If asked for, a layer norm's channels are divided by factors that its product's weight takes (`smoothed`).
10. What is only read in 8 bits, and by all that read it as the same numbers, is made so by the operation that makes it.

The result is a plain module of operators (ops.py) on channels-last maps. Its weights are buffers: nothing trains here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..model.outputs import LOGITS, SUM, feature_names, output_names
from ..model.reference import Bottleneck, Conformer, ConvTransBlock, FCUDown, FCUUp, TransformerBlock
from . import ops
from .base import InferenceNetwork
from .fold import as_matrix, fold_attention_scale, fold_batch_norm
from .streams import TWO_STREAMS, beside, join
from .weights import AS_IT_IS, Norm, Numbers, Weights


class InferenceConformer(InferenceNetwork):
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

    @property
    def second_dimension(self) -> int:
        return self.config.in_channels

    @property
    def last_products(self) -> tuple[str, ...]:
        return "conv_head", "trans_head"

    @property
    def output_names(self) -> tuple[str, ...]:
        return output_names(self.config, heads=hasattr(self, "conv_head"), norm=self.norm is not None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        wanted, found = set(self.outputs), {}
        config = self.config

        def keep(name: str, value: Tensor) -> None:
            if name in wanted:
                found[name] = value

        def map_as_read(index: int) -> Mapping[str, Any]:
            """How block `index` makes its map, which the next one reads."""
            if {f"{index}.map", f"{index}.pooled", f"{index}.class_token"} & wanted:
                return AS_IT_IS
            reader = self._reader(index)
            return reader.as_read() if reader else AS_IT_IS

        embed, scales = self.patch_embed, self.stem.scales()
        kept = self.conv_1.as_read(embed.reads)
        stem_map = ops.stem(images, *self.stem(), config.stem_stride, **scales, **kept)  # (B, H / 4, W / 4, 64)
        with beside():
            feature_map, *reduced = self.conv_1(stem_map, self._coupled(2).cnn_block, map_as_read(1))
        scales = {**embed.scales(), **self.trans_1.qkv.as_read("normed")}
        tokens, normed = ops.patch_embed(stem_map, self.cls_token, *embed(), *self.trans_1.norm1(), **scales)
        tokens = self.trans_1(tokens, normed)
        join()
        for index in range(1, config.depth + 1):
            if index > 1:
                block, reader = self._coupled(index), self._reader(index)
                feature_map, reduced, tokens, down, up = block(feature_map, reduced, tokens, reader, map_as_read(index))
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

    def _reader(self, index: int) -> InferenceBottleneck | None:
        """The bottleneck that reads the map of block `index`, if one does."""
        return self._coupled(index + 1).cnn_block if index < self.config.depth else None

    def _coupled(self, index: int) -> InferenceBlock:
        block = self.get_submodule(f"conv_trans_{index}")
        assert isinstance(block, InferenceBlock)
        return block


class InferenceBottleneck(nn.Module):
    """(B, H, W, K) -> (B, H', W', K'), in three steps that a coupled block calls one by one."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.stride = block.conv2.stride[0]
        self.conv1 = Weights(*as_matrix(*fold_batch_norm(block.conv1, block.bn1)))
        self.conv2 = Weights(*fold_batch_norm(block.conv2, block.bn2))
        self.conv3 = Weights(*as_matrix(*fold_batch_norm(block.conv3, block.bn3)))
        self.residual = None
        if block.project:
            self.residual = Weights(*as_matrix(*fold_batch_norm(block.residual_conv, block.residual_bn)))

    def forward(
        self, feature_map: Tensor, reader: InferenceBottleneck, kept: Mapping[str, Any] = AS_IT_IS
    ) -> tuple[Tensor, Tensor]:
        """The result, and what `reader` makes of it first."""
        return self.expand_for(reader, self.spatial(self.reduce(feature_map)), feature_map, kept)

    def as_read(self, *others: Numbers | None) -> Mapping[str, Any]:
        """The keywords that make a map the numbers that this bottleneck, and `others`, read."""
        added = self.conv3.adds if self.residual is None else self.residual.reads
        return self.conv1.as_read("out", added, *others)

    def reduce(self, feature_map: Tensor, token_map: Tensor | None = None, token_stride: int = 1) -> Tensor:
        scales = {**self.conv1.scales(), **self.conv2.as_read()}
        return ops.conv1x1(feature_map, *self.conv1(), token_map=token_map, token_stride=token_stride, **scales)

    def spatial(self, inner: Tensor, *others: Numbers | None) -> Tensor:
        """others: what reads the result beside `expand`, and as which numbers."""
        scales = {**self.conv2.scales(), **self.conv3.as_read("out", *others)}
        return ops.conv3x3(inner, *self.conv2(), self.stride, **scales)

    def spatial_and_pooled(self, inner: Tensor, token_stride: int, reader: Weights) -> tuple[Tensor, Tensor]:
        """`spatial` and its mean over each token's pixels, which `reader` of FCU-down reads."""
        if token_stride > 1:
            scales = {**self.conv2.scales(), **self.conv3.as_read(), **reader.as_read("pooled")}
            return ops.conv3x3_pool(inner, *self.conv2(), self.stride, token_stride, **scales)
        inner = self.spatial(inner, reader.reads)
        return inner, inner

    def expand(self, inner: Tensor, feature_map: Tensor, kept: Mapping[str, Any] = AS_IT_IS) -> Tensor:
        """kept: how the result is made, as its readers' `as_read` says."""
        residual = self._added(feature_map)
        return ops.conv1x1(inner, *self.conv3(), residual=residual, **self.conv3.scales(), **kept)

    def expand_for(
        self, reader: InferenceBottleneck, inner: Tensor, feature_map: Tensor, kept: Mapping[str, Any] = AS_IT_IS
    ) -> tuple[Tensor, Tensor]:
        """`expand`, and `reader.reduce` of its result: by one kernel where that is faster."""
        if self.is_a_pair_with(reader, inner):
            return self.expand_and_reduce(reader, inner, feature_map)
        out = self.expand(inner, feature_map, kept)
        return out, reader.reduce(out)

    def is_a_pair_with(self, reader: InferenceBottleneck, inner: Tensor) -> bool:
        """Whether `expand_and_reduce` is one kernel that is faster than two. It knows no 8 bits."""
        return reader.conv2.reads is None and ops.as_a_pair(inner, self.conv3.weight, reader.conv1.weight)

    def expand_and_reduce(
        self,
        reader: InferenceBottleneck,
        inner: Tensor,
        feature_map: Tensor,
        token_map: Tensor | None = None,
        token_stride: int = 1,
    ) -> tuple[Tensor, Tensor]:
        residual = self._added(feature_map)
        return ops.conv1x1_pair(inner, *self.conv3(), residual, *reader.conv1(), token_map, token_stride)

    def _added(self, feature_map: Tensor) -> Tensor:
        """What is added to conv3's result: the map, or its projection."""
        if self.residual is None:
            return feature_map
        scales = {**self.residual.scales(), **self.conv3.as_added()}
        return ops.conv1x1(feature_map, *self.residual(), self.stride, relu=False, **scales)


class InferenceTransformer(nn.Module):
    """Tokens (B, T, C) and their `norm1`, which whoever makes them computes -> (B, T, C)."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.num_heads = block.attn.num_heads
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv = Weights(*fold_attention_scale(block.attn.qkv, block.attn.num_heads))
        self.proj = Weights(block.attn.proj.weight, block.attn.proj.bias)
        self.fc1 = Weights(block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc2 = Weights(block.mlp.fc2.weight, block.mlp.fc2.bias)

    def forward(self, tokens: Tensor, normed: Tensor) -> Tensor:
        qkv = ops.linear(normed, *self.qkv(), **self.qkv.scales(), **self.qkv.as_made())  # (B, T, 3C)
        heads = ops.attention(qkv, self.num_heads, 1.0, **self.qkv.as_attended(), **self.proj.as_read())
        scales = {**self.proj.scales(), **self.fc1.as_read("normed")}
        tokens, normed = ops.linear_norm(heads, *self.proj(), tokens, *self.norm2(), **scales)
        hidden = ops.linear(normed, *self.fc1(), gelu=True, **self.fc1.scales(), **self.fc2.as_read())
        return ops.linear(hidden, *self.fc2(), residual=tokens, **self.fc2.scales())

    def smooth(self, product: str, factors: Tensor) -> None:
        """Divides what "qkv" or "fc1" reads from its norm by the factors (C,), and multiplies its weight by them."""
        norm, weights = (self.norm1, self.qkv) if product == "qkv" else (self.norm2, self.fc1)
        norm.weight = nn.Buffer((norm.weight / factors).to(norm.weight.dtype))
        norm.bias = nn.Buffer((norm.bias / factors).to(norm.bias.dtype))
        weights.weight = nn.Buffer((weights.weight * factors).to(weights.weight.dtype))


class InferenceBlock(nn.Module):
    """(B, H, W, K), what the first 1x1 convolution makes of it, (B, T, C) -> the same of the next block, and what the
    two coupling units passed on."""

    def __init__(self, block: ConvTransBlock) -> None:
        super().__init__()
        self.cnn_block = InferenceBottleneck(block.cnn_block)
        self.down = InferenceFCUDown(block.squeeze_block)
        self.trans_block = InferenceTransformer(block.trans_block)
        self.up = _fcu_up(block.expand_block)
        self.token_stride = block.expand_block.stride
        self.fusion_block = InferenceBottleneck(block.fusion_block)

    def forward(
        self,
        feature_map: Tensor,
        reduced: list[Tensor],
        tokens: Tensor,
        reader: InferenceBottleneck | None,
        kept: Mapping[str, Any] = AS_IT_IS,
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
        """reduced: in a list, which is emptied, so that its memory is free once it is read. kept: how the map is made,
        as its readers' `as_read` says; the first of them is `reader`, if there is one."""
        cnn, fusion, stride = self.cnn_block, self.fusion_block, self.token_stride
        inner, pooled = cnn.spatial_and_pooled(reduced.pop(), stride, self.down.project)
        paired = cnn.is_a_pair_with(fusion, inner) and inner.shape[0] > TWO_STREAMS
        if not paired:
            with beside():
                cnn_map = cnn.expand(inner, feature_map, fusion.as_read())
        down, normed = self.down(pooled, tokens, self.trans_block.norm1, self.trans_block.qkv.as_read("normed"))
        tokens = self.trans_block(down, normed)
        up = ops.fcu_up(tokens, *self.up(), **self.up.scales())
        if paired:
            cnn_map, inner = cnn.expand_and_reduce(fusion, inner, feature_map, up, stride)
        else:
            join()
            inner = fusion.reduce(cnn_map, up, stride)
        inner = fusion.spatial(inner)
        if reader is None:
            return fusion.expand(inner, cnn_map, kept), [], tokens, down, up
        feature_map, following = fusion.expand_for(reader, inner, cnn_map, kept)
        return feature_map, [following], tokens, down, up


class InferenceFCUDown(nn.Module):
    """The map at token resolution (B, h, w, K) and tokens (B, T, C) -> the transformer block's input (B, T, C) and
    its norm."""

    def __init__(self, unit: FCUDown) -> None:
        super().__init__()
        assert unit.conv_project.bias is not None
        self.project = Weights(*as_matrix(unit.conv_project.weight, unit.conv_project.bias))
        self.norm = Norm(unit.ln)

    def forward(
        self, pooled: Tensor, tokens: Tensor, norm: Norm, kept: Mapping[str, Any] = AS_IT_IS
    ) -> tuple[Tensor, Tensor]:
        """kept: how the norm is made, as its reader's `as_read` says."""
        scales = {**self.project.scales(), **kept}
        return ops.fcu_down(pooled, tokens, *self.project(), *self.norm(), 1, *norm(), **scales)


def _fcu_up(unit: FCUUp) -> Weights:
    return Weights(*as_matrix(*fold_batch_norm(unit.conv_project, unit.bn)))
