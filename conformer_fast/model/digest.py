"""The sha256 of tensors: whether two models, or two batches of images, are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values; not of their order, their device or how they lie in memory."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """`digest_of` its parameters and buffers."""
    return digest_of(model.state_dict())
