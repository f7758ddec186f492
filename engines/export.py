"""The inference model as an ONNX graph: dynamic batch, height and width, standard operators only.

The model is traced symbolically, so no size of any example is baked in: its forward is a straight line of the operators
of conformer_fast.ops, and each operator has one translation below. In ONNX, maps are (B, K, H, W) and tokens (B, T, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from conformer_fast.fuse import InferenceConformer

Products = Literal["matmul", "conv"]
OPSET = 20  # LayerNormalization (17) and Gelu (20) as single operators; read by TensorRT 10.12 and OpenVINO 2025.4
IR_VERSION = 10
IMAGES = "images"


def onnx_from_model(model: InferenceConformer, products: Products = "matmul") -> onnx.ModelProto:
    """The fp32 ONNX model of `model`: input "images" (B, in_channels, H, W), outputs named as `model.outputs`.

    products: how the tokens' projections are written, as matrix products or as the equal 1x1 convolutions.
    """
    writer = _Writer(products)
    values: dict[fx.Node, Any] = {}
    graph = fx.symbolic_trace(model).graph
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = IMAGES
        elif node.op == "get_attr":
            values[node] = _attribute(model, node.target)
        elif node.op == "output":
            results = [values[result] for result in node.args[0]]
        else:
            arguments = fx.node.map_arg(node.args, values.__getitem__)
            keywords = fx.node.map_arg(node.kwargs, values.__getitem__)
            values[node] = _TRANSLATIONS[_name_of(node)](writer, *arguments, **keywords)
    for name, value in zip(model.outputs, results, strict=True):
        writer.node("Identity", [value], output=name)
    return writer.finish(model)


class _Writer:
    """Collects nodes and initializers. Values are named; constants may be given as tensors or integer lists."""

    def __init__(self, products: Products) -> None:
        self.products = products
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str | Tensor | list[int]], output: str | None = None, **attributes) -> str:
        """Adds one node and returns its output's name."""
        output = output or f"{op}_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def project(self, tokens: str, weight: Tensor, bias: Tensor, activation: str | None = None) -> str:
        """activation(tokens weight^T + bias). (B, T, K), (C, K) -> (B, T, C).

        The activation stands next to the product, before any transposition, so that a runtime can fuse the two.
        """
        if self.products == "matmul":
            out = self.node("Add", [self.node("MatMul", [tokens, weight.t()]), bias])
            return self.node(activation, [out]) if activation else out
        as_map = self.node("Transpose", [self.node("Unsqueeze", [tokens, [1]])], perm=[0, 3, 1, 2])  # (B, K, 1, T)
        out = self.node("Conv", [as_map, weight[:, :, None, None], bias])  # (B, C, 1, T)
        if activation:
            out = self.node(activation, [out])
        return self.node("Squeeze", [self.node("Transpose", [out], perm=[0, 2, 3, 1]), [1]])

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts of `value` along `axis`."""
        outputs = [f"Split_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], outputs, name=outputs[0], axis=axis, num_outputs=parts))
        return outputs

    def constant(self, value: Tensor | list[int]) -> str:
        """Adds an initializer, fp32 for tensors and int64 for lists, and returns its name."""
        array = value.float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, np.int64)
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def finish(self, model: InferenceConformer) -> onnx.ModelProto:
        shape: list[str | int | None] = ["batch", model.config.in_channels, "height", "width"]
        images = helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, shape)
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(name)) for name in model.outputs]
        graph = helper.make_graph(self.nodes, "conformer", [images], outputs, self.initializers)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="conformer_fast")


def _shape(output: str) -> list[str]:
    """The dimensions' names of one of the model's outputs; other than the batch they are free."""
    rank = {"map": 4, "tokens": 3, "fcu_down": 3, "fcu_up": 3}.get(output.partition(".")[2], 2)
    return ["batch", *(f"{output}.{axis}" for axis in range(1, rank))]


def _attribute(model: InferenceConformer, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _name_of(node: fx.Node) -> str:
    """The operator's, builtin's or tensor method's plain name."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname
    return node.target if isinstance(node.target, str) else node.target.__name__


def _linear(w, x, weight, bias, gelu=False, residual=None, norm_weight=None, norm_bias=None, norm_eps=0.0):
    if norm_weight is not None:
        x = _layer_norm(w, x, norm_weight, norm_bias, norm_eps)
    out = w.project(x, weight, bias, "Gelu" if gelu else None)
    return out if residual is None else w.node("Add", [out, residual])


def _layer_norm(w, x, weight, bias, eps):
    return w.node("LayerNormalization", [x, weight, bias], axis=-1, epsilon=eps)


def _attention(w, qkv, num_heads, scale):
    assert scale == 1.0, "fuse() folds the scale into the query projection"
    heads = w.node("Transpose", [w.node("Reshape", [qkv, [0, 0, 3, num_heads, -1]])], perm=[2, 0, 3, 1, 4])
    q, k, v = (w.node("Squeeze", [part, [0]]) for part in w.split(heads, 3, axis=0))  # each (B, heads, T, D)
    keys = w.node("Transpose", [k], perm=[0, 1, 3, 2])  # (B, heads, D, T)
    scores = w.node("Softmax", [w.node("MatMul", [q, keys])], axis=-1)  # (B, heads, T, T)
    out = w.node("Transpose", [w.node("MatMul", [scores, v])], perm=[0, 2, 1, 3])
    return w.node("Reshape", [out, [0, 0, -1]])  # (B, T, heads, D) -> (B, T, C)


def _stem(w, images, weight, bias, multiple):
    out = w.node("Relu", [w.node("Conv", [images, weight, bias], strides=[2, 2], pads=[3, 3, 3, 3])])
    out = w.node("MaxPool", [out], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    size = w.node("Shape", [out], start=2)
    missing = w.node("Mod", [w.node("Neg", [size]), [multiple]])  # -size % multiple, for height and width
    return w.node("Pad", [out, w.node("Concat", [[0] * 6, missing], axis=0)])


def _patch_embed(w, stem_map, cls_token, weight, bias):
    patches = _map_to_tokens(w, w.node("Conv", [stem_map, weight, bias], strides=[weight.shape[-1]] * 2))
    batch = w.node("Concat", [w.node("Shape", [stem_map], end=1), [1, 1]], axis=0)
    return w.node("Concat", [w.node("Expand", [cls_token, batch]), patches], axis=1)


def _map_to_tokens(w, feature_map):
    # (B, C, H, W) -> (B, N, C)
    return w.node("Transpose", [w.node("Reshape", [feature_map, [0, 0, -1]])], perm=[0, 2, 1])


def _conv1x1(w, feature_map, weight, bias, stride=1, relu=True, residual=None):
    out = w.node("Conv", [feature_map, weight[:, :, None, None], bias], strides=[stride, stride])
    if residual is not None:
        out = w.node("Add", [out, residual])
    return w.node("Relu", [out]) if relu else out


def _conv3x3(w, feature_map, weight, bias, stride=1, token_map=None, token_stride=1):
    if token_map is not None:
        S = token_stride
        grid = w.node("Div", [w.node("Shape", [feature_map], start=2), [S]])  # H / S, W / S
        shape = w.node("Concat", [[0, weight.shape[1]], grid], axis=0)
        addition = w.node("Reshape", [w.node("Transpose", [token_map], perm=[0, 2, 1]), shape])  # (B, K, H / S, W / S)
        if S > 1:
            scales = torch.tensor([1.0, 1.0, S, S])
            addition = w.node(
                "Resize",
                [addition, "", scales],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        feature_map = w.node("Add", [feature_map, addition])
    out = w.node("Conv", [feature_map, weight, bias], strides=[stride, stride], pads=[1, 1, 1, 1])
    return w.node("Relu", [out])


def _conv3x3_pool(w, feature_map, weight, bias, stride, pool_stride):
    out = _conv3x3(w, feature_map, weight, bias, stride)
    return out, _average(w, out, pool_stride)


def _average(w, feature_map, stride):
    return w.node("AveragePool", [feature_map], kernel_shape=[stride] * 2, strides=[stride] * 2)


def _fcu_down(w, feature_map, tokens, weight, bias, norm_weight, norm_bias, norm_eps, stride):
    if stride > 1:
        feature_map = _average(w, feature_map, stride)
    projected = w.node("Conv", [feature_map, weight[:, :, None, None], bias])  # (B, C, H / S, W / S)
    patches = w.node("Gelu", [_layer_norm(w, _map_to_tokens(w, projected), norm_weight, norm_bias, norm_eps)])
    squeezed = w.node("Concat", [_rows(w, tokens, 0, 1), patches], axis=1)
    return w.node("Add", [squeezed, tokens])


def _fcu_up(w, tokens, weight, bias):
    return w.project(_rows(w, tokens, 1, _END), weight, bias, "Relu")


_END = 2**31 - 1  # past the last row, as Slice wants it


def _rows(w, tokens, start, end):
    return w.node("Slice", [tokens, [start], [end], [1]])


def _pool(w, feature_map, tokens, norm_weight, norm_bias, norm_eps):
    pooled = w.node("ReduceMean", [feature_map, [2, 3]], keepdims=0)
    class_token = w.node("Squeeze", [_rows(w, tokens, 0, 1), [1]])
    return pooled, _layer_norm(w, class_token, norm_weight, norm_bias, norm_eps)


def _heads(w, feature_map, tokens, norm_weight, norm_bias, norm_eps, conv_weight, conv_bias, trans_weight, trans_bias):
    pooled, class_token = _pool(w, feature_map, tokens, norm_weight, norm_bias, norm_eps)
    conv_logits = w.node("Gemm", [pooled, conv_weight, conv_bias], transB=1)
    trans_logits = w.node("Gemm", [class_token, trans_weight, trans_bias], transB=1)
    return conv_logits, trans_logits, w.node("Add", [conv_logits, trans_logits])


_TRANSLATIONS: dict[str, Callable[..., Any]] = {
    "attention": _attention,
    "linear": _linear,
    "stem": _stem,
    "patch_embed": _patch_embed,
    "conv1x1": _conv1x1,
    "conv3x3": _conv3x3,
    "conv3x3_pool": _conv3x3_pool,
    "fcu_down": _fcu_down,
    "fcu_up": _fcu_up,
    "pool": _pool,
    "heads": _heads,
    "getitem": lambda w, values, index: values[index],
    "permute": lambda w, feature_map, *order: feature_map,  # maps are (B, K, H, W) here already
}
