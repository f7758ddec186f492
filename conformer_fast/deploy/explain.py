"""explain(): where in a picture each branch looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints.adopt import Model, adopt
from ..engines.module import as_input
from ..errors import ArgumentError, several, whole
from ..model.forked import before_computing
from ..model.reference import Attention, Conformer, ConformerFeatures
from .fast_conformer import FastConformer


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `explain` found. Maps are fp32, on the CPU; their first row and column are the picture's top and left.

    classes: the class of each image
    conv:    (B, h, w), what each place of the convolution branch's last map adds to its head's score of the class; it
             may be negative. The mean over all places plus the head's bias is that score. [i, j] is centered at pixel
             (32 i, 32 j) of the image, and sees far around it.
    trans:   (B, h', w'), what the class token's attention in the last block gives to each patch, the mean of all heads.
             [i, j] are patch_size x patch_size pixels, from (patch_size i, patch_size j). It is the same whatever the
             class, from 0 to 1, and sums to less than 1: the rest is what the class token gives to itself.

    h' = ceil(H / patch_size), h = ceil(patch_size h' / 32), and so for the width. An image that is no whole patches is
    padded at the bottom and right by the model: both maps cover the padding too, with their last row and column.
    """

    classes: tuple[int, ...]
    conv: Tensor
    trans: Tensor


def explain(model: Model, images: Tensor, classes: int | Sequence[int] | Tensor | None = None) -> Explanation:
    """Where each branch looks: the convolution branch for a class, the transformer branch for any.

    model:   what `compile` takes, or what it returned. It is not changed.
    images:  (B, in_channels, H, W) on the CPU; normalized, or uint8 pixels
    classes: one for all images, or one for each; default: the likeliest of each, by the sum of both heads

    The fp32 reference computes it on the CPU, whatever the model was compiled for.

    Raises ArgumentError for a loaded model, which has no reference, for a model without heads, for classes that it does
    not have or that are not as many as the images, and for scores that are NaN or infinite; ArgumentTypeError for
    classes of another type; what `compile` raises for a wrong model or wrong images.
    """
    reference = _reference(model)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        given = as_input(images, reference.config, reference.pad, torch.device("cpu"), reference.recipe).float()
        asked = None if classes is None else _checked(classes, len(given), reference.config.num_classes)
        before_computing()
        (earlier_map, earlier_tokens), (last_map, tokens) = deque(reference.forward_blocks(given), maxlen=2)
        logits = reference.forward_head(ConformerFeatures((last_map,), tokens)).logits
        if not logits.isfinite().all():
            raise ArgumentError("the model's scores are NaN or infinite; check the weights")
        chosen = logits.argmax(-1).tolist() if asked is None else asked
        conv = torch.einsum("bkhw,bk->bhw", last_map, reference.conv_cls_head.weight[chosen])
        block = reference.coupled_block(reference.config.depth)
        _, inner, coupled = block.couple(earlier_map, earlier_tokens)
        given_to = _of_class_token(block.trans_block.attn, block.trans_block.norm1(coupled))
        trans = given_to[:, 1:].view(len(given), inner.shape[-2] // block.squeeze_block.stride, -1)
    return Explanation(tuple(chosen), conv, trans)


def _reference(model: Model) -> Conformer:
    """The model's reference, with heads."""
    if isinstance(model, FastConformer):
        if model.reference is None:
            raise ArgumentError(
                "explain: a loaded model has the engine of its bundle alone; give the model that it was made from"
            )
        reference = model.reference
    else:
        reference = adopt(model).reference
    if reference.features_only:
        raise ArgumentError("explain: the model is a backbone, without scores of classes; give one with its two heads")
    return reference


def _checked(classes: int | Sequence[int] | Tensor, images: int, known: int) -> list[int]:
    """A class for each image."""
    one = not isinstance(classes, Iterable) or getattr(classes, "ndim", 1) == 0  # also of a tensor or an array
    chosen = [whole("a class", value, least=0) for value in ([classes] if one else several("classes", classes))]
    for value in chosen:
        if value >= known:
            raise ArgumentError(f"a class must be less than {known}, the number of the model's classes, got {value}")
    if one:
        return chosen * images
    if len(chosen) != images:
        raise ArgumentError(f"classes must be one for all images or one for each, got {len(chosen)} for {images}")
    return chosen


def _of_class_token(attn: Attention, tokens: Tensor) -> Tensor:
    """What the class token's attention gives to each token, softmax(q k^T * scale), the mean of all heads.

    (B, T, C) -> (B, T)
    """
    B, T, C = tokens.shape
    D = C // attn.num_heads
    q, k, _ = attn.qkv(tokens).view(B, T, 3, attn.num_heads, D).permute(2, 0, 3, 1, 4)  # each (B, heads, T, D)
    return (q[:, :, :1] @ k.transpose(-2, -1) * D**-0.5).softmax(-1).mean(1)[:, 0]
