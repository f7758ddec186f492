"""The Conformer's mathematics in plain PyTorch, each operation once.

The custom operators (ops.py) run these on the CPU and they are every kernel's oracle. They are the operations of the
*inference* model, after the rewrites of network.py; the reference (reference.py) shares `attention` and is written as
the paper is. Tests in float64 hold the two together, and the official implementation's recorded outputs the reference.

Shapes: B images, N tokens without the class token, T = N + 1, C embed channels, K CNN channels, H x W map, S map pixels
per token side. Maps are (B, H, W, K), contiguous; tokens are (B, T, C) with the class token first; matrices are
(out, in) as in `torch.nn.functional.linear`.

Precisions: products are computed in their weight's dtype, and so are maps; tokens may be kept in a finer one, that of
the norms' weights and of the class token (InferenceConformer.in_precision).

8 bits: a product whose weight is stored in INT8 or FP8 comes with `weight_scale` (one for each output channel) and
`input_scale` (a scalar). Its input becomes 8-bit numbers too (`stored`), the numbers are multiplied, and the sums leave
as sum * (input_scale * weight_scale) + bias, in the bias's dtype, which maps then have. `addend_scale`: what a
bottleneck adds is rounded to 8 bits as well. Sums here are in float32: exact up to 2^24 (1040 products of INT8 at
their largest) and within 2^-24 of each partial sum beyond, where kernels and engines sum INT8 in integers.

A result that is only read in 8 bits is made so where `out_scale` and `out_dtype` are given (of a second result
`normed_` or `pooled_scale` and `_dtype`): it is then the numbers that its readers would have made of it, and they take
them as they are. Kernels make them of float32, without a rounding to 16 bits on the way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LIMITS = {torch.int8: (-128.0, 127.0), torch.float8_e4m3fn: (-448.0, 448.0)}  # of what each type stores


def stored(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """Values divided by their scale as numbers of `dtype`: rounded half to even, and held within its range.

    ONNX's QuantizeLinear (opset 19 and later, saturating) is this, with x / scale in float32.
    """
    limited = scaled.clamp(*LIMITS[dtype])
    return (limited if dtype.is_floating_point else limited.round()).to(dtype)


def through_8_bits(x: Tensor, scale: Tensor, dtype: torch.dtype, out: torch.dtype) -> Tensor:
    """What remains of x in numbers of `dtype` at this scale, in the type `out`: ONNX's QuantizeLinear, then
    DequantizeLinear. x may be those numbers already."""
    numbers, scale = _numbers(x, scale, dtype, out)
    return (numbers * scale).to(out)


def attention(
    qkv: Tensor,
    num_heads: int,
    scale: float,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    qkv_scale: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v for each head. qkv: (B, T, 3C), ordered q, k, v, then head -> (B, T, C).

    qkv_scale: of 8-bit numbers, and of the type that they are multiplied in, which a result has that is no numbers
    """
    B, T, C3 = qkv.shape
    if qkv_scale is not None:
        qkv = through_8_bits(qkv, qkv_scale, qkv.dtype, qkv_scale.dtype)
    q, k, v = qkv.view(B, T, 3, num_heads, C3 // 3 // num_heads).permute(2, 0, 3, 1, 4)  # each (B, heads, T, D)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _as_read(out.transpose(1, 2).reshape(B, T, C3 // 3), out_scale, out_dtype)  # (B, heads, T, D) -> (B, T, C)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gelu: bool = False,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """act(x weight^T + bias) + residual. (..., K) -> (..., C)."""
    out = _product(F.linear, x, weight, bias, input_scale, weight_scale)
    if gelu:
        out = F.gelu(out)
    return _as_read(out if residual is None else out + residual, out_scale, out_dtype)


def linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """out = x weight^T + bias + residual and its layer norm, which the next product reads. (..., K) -> twice (..., C).

    The norm is computed in its weight's dtype and returned in the bias's.
    """
    out = linear(x, weight, bias, False, residual, input_scale, weight_scale)
    return out, _as_read(_normalized(out, norm_weight, norm_bias, norm_eps, bias.dtype), normed_scale, normed_dtype)


def stem(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiple: int,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """7x7 convolution of stride 2, ReLU, 3x3 max-pool of stride 2, zeros to a multiple of `multiple` pixels.

    images (B, 3, H, W), weight (K, 3, 7, 7) -> (B, H', W', K).
    """
    stem_map = _product(F.conv2d, images, weight, bias, input_scale, weight_scale, stride=2, padding=3)
    stem_map = F.max_pool2d(F.relu(stem_map), 3, stride=2, padding=1)
    H, W = stem_map.shape[-2:]
    return _as_read(_nhwc(F.pad(stem_map, (0, -W % multiple, 0, -H % multiple))), out_scale, out_dtype)


def patch_embed(
    stem_map: Tensor,
    cls_token: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One product per S x S patch, behind the class token, and the norm of the tokens, as `linear_norm` returns it.

    (B, H, W, K), (1, 1, C), (C, K, S, S) -> twice (B, T, C).
    """
    S = weight.shape[-1]
    patches = _product(F.conv2d, _nchw(stem_map), weight, bias, input_scale, weight_scale, stride=S)
    patches = patches.flatten(2).transpose(1, 2)  # (B, C, H / S, W / S) -> (B, N, C)
    tokens = torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
    return tokens, _as_read(
        _normalized(tokens, norm_weight, norm_bias, norm_eps, bias.dtype), normed_scale, normed_dtype
    )


def conv1x1(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    relu: bool = True,
    residual: Tensor | None = None,
    token_map: Tensor | None = None,
    token_stride: int = 1,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    addend_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """relu(x weight^T + bias + residual) + upsampled token_map at every stride-th pixel.

    (B, H, W, K), (K', K) -> (B, H', W', K'). token_map (B, N, K'), N = H' / S * W' / S, is what FCU-up makes: its entry
    [h // S, w // S] is added at pixel [h, w], S = token_stride.
    """
    out = _product(F.linear, feature_map[:, ::stride, ::stride], weight, bias, input_scale, weight_scale)
    if residual is not None:
        if addend_scale is not None:
            residual = through_8_bits(residual, addend_scale, weight.dtype, out.dtype)
        out = out + residual
    out = F.relu(out) if relu else out
    out = out if token_map is None else _with_token_map(out, token_map, token_stride)
    return _as_read(out, out_scale, out_dtype)


def conv1x1_pair(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    next_weight: Tensor,
    next_bias: Tensor,
    token_map: Tensor | None = None,
    token_stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """A bottleneck's result, out = conv1x1(x, ..., residual), and what the next makes of it first, conv1x1(out, ...).

    (B, H, W, K), (N, K), (L, N) -> (B, H, W, N), (B, H, W, L). The token map is added to the second, as in `conv1x1`.
    """
    out = conv1x1(feature_map, weight, bias, residual=residual)
    return out, conv1x1(out, next_weight, next_bias, token_map=token_map, token_stride=token_stride)


def conv3x3(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    relu: bool = True,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """relu(conv(x) + bias), padding 1. (B, H, W, K), (K', K, 3, 3) -> (B, H', W', K')."""
    out = _product(F.conv2d, _nchw(feature_map), weight, bias, input_scale, weight_scale, stride=stride, padding=1)
    return _as_read(_nhwc(F.relu(out) if relu else out), out_scale, out_dtype)


def lateral(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    coarser: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """A step of a feature pyramid: x weight^T + bias + coarser, each of whose pixels is repeated twice along both axes.

    (B, H, W, K), (K', K), coarser (B, H / 2, W / 2, K') -> (B, H, W, K').
    """
    token_map = coarser.flatten(1, 2)
    return conv1x1(feature_map, weight, bias, 1, False, None, token_map, 2, input_scale, weight_scale)


def every_second(feature_map: Tensor) -> Tensor:
    """(B, H, W, K) -> (B, ceil(H / 2), ceil(W / 2), K)."""
    return feature_map[:, ::2, ::2].clone(memory_format=torch.contiguous_format)


def unfolded(feature_map: Tensor) -> Tensor:
    """Four pixels of each, in turn the upper ones and the lower ones. (B, H, W, 4 K) -> (B, 2 H, 2 W, K)."""
    B, H, W, K = feature_map.shape
    pixels = feature_map.reshape(B, H, W, 2, 2, K // 4).transpose(2, 3)
    return pixels.clone(memory_format=torch.contiguous_format).view(B, 2 * H, 2 * W, K // 4)


def _with_token_map(feature_map: Tensor, token_map: Tensor, stride: int) -> Tensor:
    """feature_map (B, H, W, K) plus, at each pixel, its token's entry of token_map (B, N, K)."""
    B, H, W, K = feature_map.shape
    S = stride
    x = feature_map.view(B, H // S, S, W // S, S, K) + token_map.view(B, H // S, 1, W // S, 1, K)
    return x.view(B, H, W, K)


def conv3x3_pool(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    pool_stride: int,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    pooled_scale: Tensor | None = None,
    pooled_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """conv3x3 and its average over S x S pixels, which FCU-down reads: (B, H', W', K'), (B, H' / S, W' / S, K')."""
    out = conv3x3(feature_map, weight, bias, stride, True, input_scale, weight_scale)
    pooled = _as_read(average(out, pool_stride), pooled_scale, pooled_dtype)
    return _as_read(out, out_scale, out_dtype), pooled


def average(feature_map: Tensor, stride: int) -> Tensor:
    """The mean over S x S pixels. (B, H, W, K) -> (B, H / S, W / S, K)."""
    return _nhwc(F.avg_pool2d(_nchw(feature_map), stride))


def fcu_down(
    feature_map: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    inner_weight: Tensor,
    inner_bias: Tensor,
    inner_eps: float,
    stride: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    normed_scale: Tensor | None = None,
    normed_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Feature Coupling Unit, CNN to transformer, added to the tokens (paper, section 3.2), and the norm of the sum.

    out[:, 1:] = tokens[:, 1:] + gelu(inner norm(pool(x) weight^T + bias)), and out[:, 0] = 2 tokens[:, 0]: the class
    token stands in for the missing pooled one. The norm is what the attention reads, as `linear_norm` returns it.

    feature_map (B, H, W, K), weight (C, K), tokens (B, T, C) -> twice (B, T, C).
    """
    pooled = (average(feature_map, stride) if stride > 1 else feature_map).flatten(1, 2)  # (B, N, K)
    projected = _product(F.linear, pooled, weight, bias, input_scale, weight_scale).to(inner_weight.dtype)
    projected = F.layer_norm(projected, weight.shape[:1], inner_weight, inner_bias, inner_eps)
    out = torch.cat([tokens[:, :1], F.gelu(projected)], dim=1) + tokens
    return out, _as_read(_normalized(out, norm_weight, norm_bias, norm_eps, bias.dtype), normed_scale, normed_dtype)


def fcu_up(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Feature Coupling Unit, transformer to CNN, at token resolution: relu(tokens weight^T + bias) without the class
    token; its consumer (conv1x1) repeats each entry. (B, T, C), (K, C) -> (B, N, K)."""
    return F.relu(_product(F.linear, tokens[:, 1:], weight, bias, input_scale, weight_scale))


def pool(
    feature_map: Tensor, tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """What the two heads read: the map's mean (B, K) and the normalized class token (B, C)."""
    class_token = F.layer_norm(tokens[:, 0], tokens.shape[-1:], norm_weight, norm_bias, norm_eps)
    return feature_map.mean((1, 2)), class_token


def heads(
    feature_map: Tensor,
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    conv_weight: Tensor,
    conv_bias: Tensor,
    trans_weight: Tensor,
    trans_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both heads' logits and their sum. (B, H, W, K), (B, T, C) -> three times (B, classes)."""
    pooled, class_token = pool(feature_map, tokens, norm_weight, norm_bias, norm_eps)
    conv_logits = F.linear(pooled, conv_weight, conv_bias).to(tokens.dtype)
    trans_logits = F.linear(class_token.to(trans_weight.dtype), trans_weight, trans_bias).to(tokens.dtype)
    return conv_logits, trans_logits, conv_logits + trans_logits


def _normalized(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The layer norm, in its weight's dtype, as numbers of `dtype`."""
    return F.layer_norm(tokens, weight.shape, weight, bias, eps).to(dtype)


def _product(
    multiply: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor | None,
    weight_scale: Tensor | None,
    **options: int,
) -> Tensor:
    """multiply(x, weight, bias, **options) in the weight's dtype; of 8-bit numbers, as the module's docstring says."""
    if input_scale is None or weight_scale is None:
        return multiply(x.to(weight.dtype), weight, bias, **options)
    numbers, scale = _numbers(x, input_scale, weight.dtype, bias.dtype)
    sums = multiply(numbers, weight.to(numbers.dtype), None, **options)
    scale = scale * weight_scale.to(scale.dtype)  # in 16 bits it might be subnormal
    scale, shift = (value.view(-1, *[1] * (weight.ndim - 2)) for value in (scale, bias))
    return (sums * scale + shift).to(bias.dtype)


def _numbers(x: Tensor, scale: Tensor, dtype: torch.dtype, around: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of `dtype` that x is stored as, or is already, and their scale: both in float32, or finer if the type
    `around` them or x is."""
    fine = torch.promote_types(around, torch.float32)
    if x.dtype == dtype:
        return x.to(fine), scale.to(fine)
    fine = torch.promote_types(fine, x.dtype)
    scale = scale.to(fine)
    return stored(x.to(fine) / scale, dtype).to(fine), scale  # a scale alone would leave the quotient in 16 bits


def _as_read(x: Tensor, scale: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """The numbers of `dtype` at this scale that a product would make of x, as it reads it; x if none is given."""
    if scale is None or dtype is None:
        return x
    fine = torch.promote_types(x.dtype, torch.float32)
    return stored(x.to(fine) / scale.to(fine), dtype)


def _nchw(feature_map: Tensor) -> Tensor:
    """A view for PyTorch's convolutions; its memory format is channels_last."""
    return feature_map.permute(0, 3, 1, 2)


def _nhwc(feature_map: Tensor) -> Tensor:
    """Back to (B, H, W, K); free where the convolution kept channels_last."""
    return feature_map.permute(0, 2, 3, 1).contiguous()
