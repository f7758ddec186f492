"""The inference model's operations as PyTorch custom operators, `torch.ops.conformer_fast.*`.

Each is registered the same way: the schema and the CPU implementation are the function of the same name in
functional.py, where its shapes are documented; the CUDA implementation is the kernel that kernels/dispatch.py chooses,
or the same function of functional.py; `register_fake` gives the output's shape. Being operators, they stay whole in a
traced graph, which is what engines/onnx/export.py translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, fx
from torch.library import CustomOpDef, custom_op
from torch.utils._python_dispatch import TorchDispatchMode

from ..model import functional as CF

NAMESPACE = "conformer_fast"
OPS: dict[str, CustomOpDef] = {}
MOVES = {"every_second", "unfolded"}  # which compute nothing: PyTorch's copies, also where the others are kernels


def _operator(fake):
    """Registers functional.<name> as an operator, with `fake` (same arguments) as its shape function."""
    op = custom_op(f"{NAMESPACE}::{fake.__name__}", getattr(CF, fake.__name__), mutates_args=())
    op.register_fake(fake)
    if fake.__name__ not in MOVES:
        op.register_kernel("cuda")(partial(_by_kernel, fake.__name__))
    OPS[fake.__name__] = op
    return op


def _by_kernel(name, *args, **kwargs):
    from ..kernels import dispatch

    return dispatch.run(name, getattr(CF, name), *args, **kwargs)


def on_kernels() -> TorchDispatchMode:
    """Inside, in this thread, the operators are their kernels on any device: on the CPU for Triton's interpreter, on
    meta tensors to record what would be launched. What the kernels themselves call is left alone."""
    return _OnKernels()


def as_a_pair(feature_map: Tensor, weight: Tensor, next_weight: Tensor) -> bool:
    """Whether `conv1x1_pair` of these would be one kernel that is faster than the two of `conv1x1`. Never where the
    operators are not kernels, nor where the map is unknown (trace.py): other engines fuse what they like."""
    if not isinstance(feature_map, Tensor) or not (feature_map.is_cuda or _on_kernels.get()):
        return False
    from ..kernels.conv1x1_pair import pays

    return pays(feature_map, weight, next_weight)


_on_kernels: ContextVar[bool] = ContextVar("on_kernels", default=False)


class _OnKernels(TorchDispatchMode):
    def __enter__(self):
        self._before = _on_kernels.set(True)
        return super().__enter__()

    def __exit__(self, *raised):
        _on_kernels.reset(self._before)
        super().__exit__(*raised)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call imports it, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        call = partial(_by_kernel, name) if func.namespace == NAMESPACE and name not in MOVES else func
        return call(*args, **(kwargs or {}))


def operation_of(node: fx.Node) -> str:
    """What a traced node calls: the name of one of these operators, of a builtin or of a tensor's method."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.overloadpacket.__name__
    return node.target if isinstance(node.target, str) else node.target.__name__


@_operator
def attention(qkv, num_heads, scale, out_scale=None, out_dtype=None, qkv_scale=None):
    multiplied = qkv if qkv_scale is None else qkv_scale
    return multiplied.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=out_dtype)


@_operator
def linear(
    x,
    weight,
    bias,
    gelu=False,
    residual=None,
    input_scale=None,
    weight_scale=None,
    out_scale=None,
    out_dtype=None,
):
    dtype = bias.dtype if residual is None else torch.promote_types(bias.dtype, residual.dtype)
    return bias.new_empty(*x.shape[:-1], weight.shape[0], dtype=out_dtype or dtype)


@_operator
def linear_norm(
    x,
    weight,
    bias,
    residual,
    norm_weight,
    norm_bias,
    norm_eps,
    input_scale=None,
    weight_scale=None,
    normed_scale=None,
    normed_dtype=None,
):
    return _with_norm(residual.shape, bias, residual, normed_dtype)


@_operator
def stem(images, weight, bias, multiple, input_scale=None, weight_scale=None, out_scale=None, out_dtype=None):
    B, _, H, W = images.shape
    H, W = (-(-_halved(_halved(size)) // multiple) * multiple for size in (H, W))
    return bias.new_empty(B, H, W, weight.shape[0], dtype=out_dtype)


@_operator
def patch_embed(
    stem_map,
    cls_token,
    weight,
    bias,
    norm_weight,
    norm_bias,
    norm_eps,
    input_scale=None,
    weight_scale=None,
    normed_scale=None,
    normed_dtype=None,
):
    B, H, W, _ = stem_map.shape
    S = weight.shape[-1]
    return _with_norm((B, 1 + (H // S) * (W // S), weight.shape[0]), bias, cls_token, normed_dtype)


@_operator
def conv1x1(
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
    out_scale=None,
    out_dtype=None,
):
    return _convolved(feature_map, weight, bias, stride, out_dtype)


@_operator
def conv1x1_pair(feature_map, weight, bias, residual, next_weight, next_bias, token_map=None, token_stride=1):
    out = _convolved(feature_map, weight, bias, 1, None)
    return out, _convolved(out, next_weight, next_bias, 1, None)


@_operator
def conv3x3(
    feature_map,
    weight,
    bias,
    stride=1,
    relu=True,
    input_scale=None,
    weight_scale=None,
    out_scale=None,
    out_dtype=None,
):
    return _convolved(feature_map, weight, bias, stride, out_dtype)


@_operator
def conv3x3_pool(
    feature_map,
    weight,
    bias,
    stride,
    pool_stride,
    input_scale=None,
    weight_scale=None,
    out_scale=None,
    out_dtype=None,
    pooled_scale=None,
    pooled_dtype=None,
):
    out = _convolved(feature_map, weight, bias, stride, out_dtype)
    B, H, W, K = out.shape
    return out, bias.new_empty(B, H // pool_stride, W // pool_stride, K, dtype=pooled_dtype)


@_operator
def fcu_down(
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
    normed_scale=None,
    normed_dtype=None,
):
    return _with_norm(tokens.shape, bias, tokens, normed_dtype)


@_operator
def fcu_up(tokens, weight, bias, input_scale=None, weight_scale=None):
    return bias.new_empty(tokens.shape[0], tokens.shape[1] - 1, weight.shape[0])


@_operator
def pool(feature_map, tokens, norm_weight, norm_bias, norm_eps):
    B, K, C = feature_map.shape[0], feature_map.shape[-1], tokens.shape[-1]
    return feature_map.new_empty(B, K), tokens.new_empty(B, C)


@_operator
def heads(feature_map, tokens, norm_weight, norm_bias, norm_eps, conv_weight, conv_bias, trans_weight, trans_bias):
    shape = feature_map.shape[0], conv_weight.shape[0]
    return tokens.new_empty(shape), tokens.new_empty(shape), tokens.new_empty(shape)


@_operator
def lateral(feature_map, weight, bias, coarser, input_scale=None, weight_scale=None):
    return _convolved(feature_map, weight, bias, 1, None)


@_operator
def every_second(feature_map):
    B, H, W, K = feature_map.shape
    return feature_map.new_empty(B, _halved(H), _halved(W), K)


@_operator
def unfolded(feature_map):
    B, H, W, K = feature_map.shape
    return feature_map.new_empty(B, 2 * H, 2 * W, K // 4)


def _with_norm(shape: Sequence[int], bias: Tensor, added: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Of tokens that a product with this bias is `added` to, and of their norm."""
    tokens = bias.new_empty(shape, dtype=torch.promote_types(bias.dtype, added.dtype))
    return tokens, bias.new_empty(shape, dtype=dtype)


def _halved(size: int) -> int:
    """The extent after a layer of stride 2 with 'same' padding."""
    return (size + 1) // 2


def _convolved(feature_map: Tensor, weight: Tensor, bias: Tensor, stride: int, dtype: torch.dtype | None) -> Tensor:
    B, H, W, _ = feature_map.shape
    return bias.new_empty(B, (H - 1) // stride + 1, (W - 1) // stride + 1, weight.shape[0], dtype=dtype)
