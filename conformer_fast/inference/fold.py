"""The algebra of weights: a layer that follows another becomes part of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
    """Weight and bias of the joint projection with its query rows and key rows multiplied by factors whose product is
    1 / sqrt(head size): so queries and keys are of one size, as 8 bits with one scale want them. The keys' is a power
    of two, which rounds nothing.

    Of meta tensors, their shapes.
    """
    if qkv.weight.is_meta:
        return qkv.weight, qkv.bias
    dim = qkv.in_features
    scale = torch.ones(3 * dim, dtype=torch.float64, device=qkv.weight.device)
    whole = (dim // num_heads) ** -0.5
    scale[dim : 2 * dim] = 2.0 ** round(math.log2(whole) / 2)
    scale[:dim] = whole / scale[dim]
    weight, bias = qkv.weight.double() * scale[:, None], qkv.bias.double() * scale
    return weight.to(qkv.weight.dtype), bias.to(qkv.bias.dtype)


def as_matrix(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution's weight as a matrix. (C, K, 1, 1) -> (C, K)."""
    return weight.flatten(1), bias
