"""An inference network as an ONNX graph: dynamic batch, height and width, standard operators only.

The model is traced symbolically, so no size of any example is baked in: its forward is a straight line of the operators
of inference/ops.py, and each operator has one translation below. In ONNX, maps are (B, K, H, W) and tokens (B, T, C).

The graph computes in the types that the model's weights have, exactly where functional.py does: products and maps in
their weights' type, tokens and norms in that of the norms' weights, so `in_precision(torch.float16)` decides both what
our kernels and what an engine computes. Softmax and the heads are fp32 in any case, images and outputs are always.

Products that the model has in 8 bits (`quantized`) read and have their weight behind a pair of QuantizeLinear and
DequantizeLinear, of the model's own numbers and scales. The one difference from functional.py: what a product reads is
rounded to the 16-bit type around it before it is rounded to 8 bits, which matters for images and the fp32 results of
norms alone. The stem's map is rounded before its pool as well as behind it, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, fx

from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.ops import operation_of
from conformer_fast.inference.trace import trace

from . import IMAGES
from .typed_graph import TypedGraph

Products = Literal["matmul", "conv"]
PIXELS = ".pixels"  # outputs that are (B, H, W, K), as the operators have their maps


def onnx_from_model(model: InferenceNetwork, products: Products = "matmul") -> onnx.ModelProto:
    """The ONNX model of `model`: input "images" (B, in_channels, H, W), outputs named as `model.outputs`, all fp32.

    products: how the tokens' projections are written, as matrix products or as the equal 1x1 convolutions
    """
    writer = _Writer(products)
    values: dict[fx.Node, Any] = {}
    graph = trace(model)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "placeholder":
            given = writer.input(IMAGES, torch.float32)
            if model.channels_last:  # a map, which nothing casts on its way into a product
                given = writer.cast(writer.node("Transpose", [given], perm=[0, 3, 1, 2]), model.dtype)
            values[node] = given
        elif node.op == "get_attr":
            values[node] = model.get_buffer(node.target)
        elif node.op == "output":
            results = [values[result] for result in node.args[0]]
        else:
            arguments = fx.node.map_arg(node.args, values.__getitem__)
            keywords = dict(fx.node.map_arg(node.kwargs, values.__getitem__))
            as_read = {name: keywords.pop(name) for name in _AS_READ & keywords.keys()}
            if operation_of(node) == "stem":
                keywords["map_scale"] = as_read.get("out_scale")
            if keywords.get("qkv_scale") is not None:
                keywords["qkv_dtype"] = node.args[0].kwargs["out_dtype"]
            values[node] = _TRANSLATIONS[operation_of(node)](writer, *arguments, **keywords)
    for name, value in zip(model.outputs, results, strict=True):
        if name.endswith(PIXELS):
            value = writer.node("Transpose", [value], perm=[0, 2, 3, 1])
        writer.node("Identity", [writer.cast(value, torch.float32)], output=name)
    images = ["batch", model.second_dimension, "height", "width"]
    return writer.model({IMAGES: images}, {name: _shape(name) for name in model.outputs})


# How the numbers are made that readers take. In the graph each reader has a pair of its own, which engines place.
_AS_READ = {f"{result}_{what}" for result in ("out", "normed", "pooled") for what in ("scale", "dtype")}


class _Writer(TypedGraph):
    """Knows how the model's products are written."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self._products = products

    def project(
        self,
        tokens: str,
        weight: Tensor,
        bias: Tensor,
        input_scale: Tensor | None,
        weight_scale: Tensor | None,
        activation: str | None = None,
    ) -> str:
        """activation(tokens weight^T + bias). (B, T, K), (C, K) -> (B, T, C).

        The activation stands next to the product, before any transposition, and so does what the next product reads in
        8 bits: a runtime can then fuse the three.
        """
        tokens = self.cast(tokens, bias.dtype)
        if self._products == "matmul":
            tokens = self.quantized(tokens, input_scale, weight.dtype)
            product = self.node("MatMul", [tokens, self.weight(weight.t(), weight_scale, axis=1)])
            out = self.node("Add", [product, bias])
            return self.node(activation, [out]) if activation else out
        as_map = self.node("Transpose", [self.node("Unsqueeze", [tokens, [1]])], perm=[0, 3, 1, 2])  # (B, K, 1, T)
        out = self.convolve(as_map, weight, bias, input_scale, weight_scale)  # (B, C, 1, T)
        if activation:
            out = self.node(activation, [out])
        return self.node("Squeeze", [self.node("Transpose", [out], perm=[0, 2, 3, 1]), [1]])

    def heads(self, qkv: str, num_heads: int) -> list[str]:
        """Queries, keys and values of each head. (B, T, 3C) -> three times (B, heads, T, D).

        Split along an axis of its own, TensorRT-RTX takes a joint matrix product apart and out of 8 bits. OpenVINO
        copies nothing if that is the outermost axis.
        """
        if self._products == "matmul":
            heads = self.node("Transpose", [self.node("Reshape", [qkv, [0, 0, 3 * num_heads, -1]])], perm=[0, 2, 1, 3])
            return self.split(heads, 3, axis=1)
        parts = self.node("Reshape", [qkv, [0, 0, 3, num_heads, -1]])  # (B, T, 3, heads, D)
        parts = self.node("Transpose", [parts], perm=[2, 0, 3, 1, 4])
        return [self.node("Squeeze", [part, [0]]) for part in self.split(parts, 3, axis=0)]

    def convolve(
        self,
        feature_map: str,
        weight: Tensor,
        bias: Tensor,
        input_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        **attributes: Any,
    ) -> str:
        """A convolution; the weight is (K', K, S, S), or (K', K) of a 1x1 one.

        In FP8 the bias is a node of its own: ONNX Runtime would put that of a convolution in INT32, at the product of
        both scales, which is too small for FP16, and the scores would be wrong.
        """
        feature_map = self.quantized(feature_map, input_scale, weight.dtype)
        kernel = self.weight(weight if weight.ndim == 4 else weight[:, :, None, None], weight_scale)
        if weight.dtype != torch.float8_e4m3fn:
            return self.node("Conv", [feature_map, kernel, bias], **attributes)
        return self.node("Add", [self.node("Conv", [feature_map, kernel], **attributes), bias[:, None, None]])


def _shape(output: str) -> list[str]:
    """The dimensions' names of one of the model's outputs; other than the batch they are free."""
    rank = {"map": 4, "pixels": 4, "tokens": 3, "fcu_down": 3, "fcu_up": 3}.get(output.rpartition(".")[2], 2)
    return ["batch", *(f"{output}.{axis}" for axis in range(1, rank))]


def _linear(
    w,
    x,
    weight,
    bias,
    gelu=False,
    residual=None,
    input_scale=None,
    weight_scale=None,
):
    out = w.project(x, weight, bias, input_scale, weight_scale, "Gelu" if gelu else None)
    return out if residual is None else w.add(out, residual)


def _linear_norm(w, x, weight, bias, residual, norm_weight, norm_bias, norm_eps, input_scale=None, weight_scale=None):
    out = _linear(w, x, weight, bias, False, residual, input_scale, weight_scale)
    return _with_norm(w, out, bias, norm_weight, norm_bias, norm_eps)


def _with_norm(w, tokens, product_bias, weight, bias, eps):
    return tokens, w.cast(_layer_norm(w, tokens, weight, bias, eps), product_bias.dtype)


def _layer_norm(w, x, weight, bias, eps):
    return w.node("LayerNormalization", [w.cast(x, weight.dtype), weight, bias], axis=-1, epsilon=eps)


def _attention(w, qkv, num_heads, scale, qkv_scale=None, qkv_dtype=None):
    assert scale == 1.0, "lower() folds the scale into the joint projection"
    q, k, v = w.heads(w.quantized(qkv, qkv_scale, qkv_dtype), num_heads)  # each (B, heads, T, D)
    keys = w.node("Transpose", [k], perm=[0, 1, 3, 2])  # (B, heads, D, T)
    scores = w.cast(w.node("MatMul", [q, keys]), torch.float32)
    scores = w.cast(w.node("Softmax", [scores], axis=-1), w.type_of(v))  # (B, heads, T, T)
    out = w.node("Transpose", [w.node("MatMul", [scores, v])], perm=[0, 2, 1, 3])
    return w.node("Reshape", [out, [0, 0, -1]])  # (B, T, heads, D) -> (B, T, C)


def _stem(w, images, weight, bias, multiple, input_scale=None, weight_scale=None, map_scale=None):
    options = {"strides": [2, 2], "pads": [3, 3, 3, 3]}
    out = w.node("Relu", [w.convolve(w.cast(images, bias.dtype), weight, bias, input_scale, weight_scale, **options)])
    if weight_scale is not None:  # rounded before the pool: the largest of rounded numbers is the largest, rounded
        out = w.quantized(out, map_scale, weight.dtype)
    out = w.node("MaxPool", [out], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    size = w.shape(out, start=2, end=4)  # height and width
    # The next multiple, less the size. TensorRT bounds this for wide ranges of sizes; of -size % multiple it cannot.
    patches = w.node("Div", [w.node("Add", [size, [multiple - 1]]), [multiple]])
    missing = w.node("Sub", [w.node("Mul", [patches, [multiple]]), size])
    return w.node("Pad", [out, w.node("Concat", [[0] * 6, missing], axis=0)])


def _patch_embed(
    w, stem_map, cls_token, weight, bias, norm_weight, norm_bias, norm_eps, input_scale=None, weight_scale=None
):
    strides = [weight.shape[-1]] * 2
    patches = w.convolve(stem_map, weight, bias, input_scale, weight_scale, strides=strides)
    patches = _map_to_tokens(w, patches, weight.shape[0])
    batch = w.node("Concat", [w.shape(stem_map, end=1), [1, 1]], axis=0)
    class_tokens = w.node("Expand", [cls_token, batch])
    tokens = w.node("Concat", [class_tokens, w.cast(patches, cls_token.dtype)], axis=1)
    return _with_norm(w, tokens, bias, norm_weight, norm_bias, norm_eps)


def _map_to_tokens(w, feature_map, channels):
    # (B, C, H, W) -> (B, N, C). Channels first: on channels-last maps this order moves nothing.
    return w.node("Reshape", [w.node("Transpose", [feature_map], perm=[0, 2, 3, 1]), [0, -1, channels]])


def _conv1x1(
    w,
    feature_map,
    weight,
    bias,
    stride=1,
    relu=True,
    residual=None,
    token_map=None,
    token_stride=1,
    input_scale=None,
    weight_scale=None,
    addend_scale=None,
):
    out = w.convolve(feature_map, weight, bias, input_scale, weight_scale, strides=[stride, stride])
    if residual is not None:
        out = w.add(out, w.quantized(residual, addend_scale, weight.dtype))
    out = w.node("Relu", [out]) if relu else out
    return out if token_map is None else _with_token_map(w, out, token_map, token_stride, weight.shape[0])


def _with_token_map(w, feature_map, token_map, stride, channels):
    grid = w.node("Div", [w.shape(feature_map, start=2, end=4), [stride]])  # H / S, W / S
    shape = w.node("Concat", [[0, channels], grid], axis=0)
    addition = w.node("Reshape", [w.node("Transpose", [token_map], perm=[0, 2, 1]), shape])  # (B, K, H / S, W / S)
    return w.node("Add", [feature_map, _repeated(w, addition, stride) if stride > 1 else addition])


def _repeated(w, feature_map, stride):
    """Each pixel, along both axes."""
    return w.node(
        "Resize",
        [feature_map, "", torch.tensor([1.0, 1.0, stride, stride], dtype=torch.float32, device="cpu")],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _conv3x3(w, feature_map, weight, bias, stride=1, relu=True, input_scale=None, weight_scale=None):
    options = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
    out = w.convolve(feature_map, weight, bias, input_scale, weight_scale, **options)
    return w.node("Relu", [out]) if relu else out


def _lateral(w, feature_map, weight, bias, coarser, input_scale=None, weight_scale=None):
    out = w.convolve(feature_map, weight, bias, input_scale, weight_scale)
    return w.node("Add", [out, _repeated(w, coarser, 2)])


def _every_second(w, feature_map):
    return w.node("MaxPool", [feature_map], kernel_shape=[1, 1], strides=[2, 2])


def _unfolded(w, feature_map):
    return w.node("DepthToSpace", [feature_map], blocksize=2, mode="DCR")


def _conv3x3_pool(w, feature_map, weight, bias, stride, pool_stride, input_scale=None, weight_scale=None):
    out = _conv3x3(w, feature_map, weight, bias, stride, True, input_scale, weight_scale)
    return out, _average(w, out, pool_stride)


def _average(w, feature_map, stride):
    return w.node("AveragePool", [feature_map], kernel_shape=[stride] * 2, strides=[stride] * 2)


def _fcu_down(
    w,
    feature_map,
    tokens,
    weight,
    bias,
    inner_weight,
    inner_bias,
    inner_eps,
    stride,
    norm_weight,
    norm_bias,
    norm_eps,
    input_scale=None,
    weight_scale=None,
):
    if stride > 1:
        feature_map = _average(w, feature_map, stride)
    projected = w.convolve(feature_map, weight, bias, input_scale, weight_scale)  # (B, C, H / S, W / S)
    projected = _map_to_tokens(w, projected, weight.shape[0])
    patches = w.node("Gelu", [_layer_norm(w, projected, inner_weight, inner_bias, inner_eps)])
    squeezed = w.node("Concat", [_rows(w, tokens, 0, 1), patches], axis=1)
    return _with_norm(w, w.node("Add", [squeezed, tokens]), bias, norm_weight, norm_bias, norm_eps)


def _fcu_up(w, tokens, weight, bias, input_scale=None, weight_scale=None):
    # of all tokens, as its results are fewer numbers to leave the class token's out of
    return _rows(w, w.project(tokens, weight, bias, input_scale, weight_scale, "Relu"), 1, _END)


_END = 2**31 - 1  # past the last row, as Slice wants it


def _rows(w, tokens, start, end):
    return w.node("Slice", [tokens, [start], [end], [1]])


def _pool(w, feature_map, tokens, norm_weight, norm_bias, norm_eps):
    pooled = w.node("ReduceMean", [w.cast(feature_map, torch.float32), [2, 3]], keepdims=0)
    class_token = w.node("Squeeze", [_rows(w, tokens, 0, 1), [1]])
    return pooled, _layer_norm(w, class_token, norm_weight, norm_bias, norm_eps)


def _heads(w, feature_map, tokens, norm_weight, norm_bias, norm_eps, conv_weight, conv_bias, trans_weight, trans_bias):
    pooled, class_token = _pool(w, feature_map, tokens, norm_weight, norm_bias, norm_eps)
    conv_logits = w.node("Gemm", [pooled, conv_weight.float(), conv_bias.float()], transB=1)
    class_token = w.cast(class_token, torch.float32)
    trans_logits = w.node("Gemm", [class_token, trans_weight.float(), trans_bias.float()], transB=1)
    return conv_logits, trans_logits, w.node("Add", [conv_logits, trans_logits])


_TRANSLATIONS: dict[str, Callable[..., Any]] = {
    "attention": _attention,
    "linear": _linear,
    "linear_norm": _linear_norm,
    "stem": _stem,
    "patch_embed": _patch_embed,
    "conv1x1": _conv1x1,
    "conv3x3": _conv3x3,
    "conv3x3_pool": _conv3x3_pool,
    "lateral": _lateral,
    "every_second": _every_second,
    "unfolded": _unfolded,
    "fcu_down": _fcu_down,
    "fcu_up": _fcu_up,
    "pool": _pool,
    "heads": _heads,
    "getitem": lambda w, values, index: values[index],
    "permute": lambda w, feature_map, *order: feature_map,  # maps are (B, K, H, W) here already
}
