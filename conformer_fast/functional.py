"""The Conformer's mathematics, each operation once, in plain PyTorch.

The reference model calls these, the custom operators run the same formulas on the CPU, and they are every kernel's
oracle. Their own oracle is the recorded output of the official implementation (tests/data).

Shapes: B images, N tokens without the class token, T = N + 1, C embed channels, K CNN channels, H x W map,
S map pixels per token side. Maps here are (B, K, H, W), tokens are (B, T, C) with the class token first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(feature_map: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and right until height and width are multiples. (B, K, H, W) -> (B, K, H', W')."""
    H, W = feature_map.shape[-2:]
    return F.pad(feature_map, (0, -W % multiple, 0, -H % multiple))


def attention(qkv: Tensor, num_heads: int, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v for each head. qkv: (B, T, 3C), ordered q, k, v, then head -> (B, T, C).

    scale is 1 / sqrt(head size) by default.
    """
    B, T, C3 = qkv.shape
    q, k, v = qkv.view(B, T, 3, num_heads, C3 // 3 // num_heads).permute(2, 0, 3, 1, 4)  # each (B, heads, T, D)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).reshape(B, T, C3 // 3)  # (B, heads, T, D) -> (B, T, C)


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Drops the class token. (B, 1 + height * width, C) -> (B, C, height, width)."""
    B, _, C = tokens.shape
    return tokens[:, 1:].transpose(1, 2).reshape(B, C, height, width)


def fcu_down(
    feature_map: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    stride: int,
    eps: float = 1e-6,
) -> Tensor:
    """Feature Coupling Unit, CNN to transformer: gelu(layer_norm(pool(project(x)))) (section 3.2 of the paper).

    feature_map (B, K, H, W), weight (C, K, 1, 1) -> patch tokens (B, N, C), N = (H // stride) * (W // stride).
    """
    projected = F.avg_pool2d(F.conv2d(feature_map, weight, bias), stride)  # (B, C, H // S, W // S)
    tokens = map_to_tokens(projected)
    return F.gelu(F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps))


def upsample(feature_map: Tensor, stride: int) -> Tensor:
    """Nearest neighbour: out[i, j] = in[i // stride, j // stride]. (B, K, h, w) -> (B, K, h * stride, w * stride)."""
    return feature_map.repeat_interleave(stride, -2).repeat_interleave(stride, -1)


def concat_class_token(class_token: Tensor, patch_tokens: Tensor) -> Tensor:
    """(B or 1, 1, C), (B, N, C) -> (B, 1 + N, C)."""
    return torch.cat([class_token.expand(patch_tokens.shape[0], -1, -1), patch_tokens], dim=1)
