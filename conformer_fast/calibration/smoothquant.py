"""Smoothing: channels of a layer norm's output that are much larger than others hand their size to the weights.

An 8-bit input has one scale, which its largest channel sets; a weight has one for each output channel, so its columns
may differ freely less. For any positive s,

    layer_norm(x; w, b) W^T = layer_norm(x; w / s, b / s) (W s)^T        s_j = max|x_j|^a / max|W_:j|^(1 - a)

exactly (SmoothQuant, arXiv 2211.10438, equations 3 and 4). It is done for the joint projection (qkv) and the MLP's
first product (fc1), which read a norm each, and only where some `a` makes the product's error clearly smaller, as
measured on images in the format itself. The rewrite is `InferenceConformer.smoothed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inference.base import READ_A_NORM
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.functional import stored
from .histograms import Histogram
from .observer import Observer, spread

IMAGES = 64  # looked at
ROWS = 16  # of each image's tokens: the class token and evenly taken patches
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # `a`, tried
GAIN = 0.5  # the product's squared error must fall below this share of what it was

Factors = dict[str, tuple[float, ...]]


def smoothing_factors(model: InferenceConformer, batches: Sequence[Tensor], precision: str) -> Factors:
    """The factors s of each product that gains from them, by its name; see `InferenceConformer.smoothed`.

    model:     in fp32
    batches:   images (B, in_channels, H, W), normalized; about IMAGES of them are looked at
    precision: "int8" or "fp8"
    """
    largest: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}

    def see(name: str, value: Tensor) -> None:
        if name.rpartition(".")[-1] in READ_A_NORM:
            most = value.abs().amax((0, 1))  # (C,)
            largest[name] = torch.maximum(largest[name], most) if name in largest else most
            taken = torch.linspace(0, value.shape[1] - 1, ROWS, device=value.device).long().unique()
            rows.setdefault(name, []).append(value[:, taken].flatten(0, 1))

    observer = Observer(model)
    for images in spread(batches, IMAGES):
        observer.observe(images, see)
    found = {}
    for name, parts in rows.items():
        factors = _factors(torch.cat(parts), largest[name], model.get_buffer(f"{name}.weight"), precision)
        if factors is not None:
            found[name] = tuple(factors.tolist())
    return found


def _factors(x: Tensor, largest: Tensor, weight: Tensor, precision: str) -> Tensor | None:
    """s for one product with inputs x (rows, C), their largest magnitudes (C,) and weight (K, C); None for none."""
    smallest = torch.finfo(torch.float32).tiny
    inputs, columns = (value.double().clamp(min=smallest).log() for value in (largest, weight.abs().amax(0)))
    best, least = None, GAIN * _error(x, weight, torch.ones_like(largest), precision)
    for strength in STRENGTHS:
        powers = strength * inputs - (1 - strength) * columns
        powers = (powers - powers.mean()).clamp(-7, 7)  # the same for all channels does nothing; none beyond e^7
        factors = powers.exp().float()
        error = _error(x, weight, factors, precision)
        if error < least:
            best, least = factors, error
    return best


def _error(x: Tensor, weight: Tensor, factors: Tensor, precision: str) -> float:
    """The squared error of x weight^T in 8 bits, with the factors."""
    inputs, columns = x / factors, weight * factors
    histogram = Histogram()
    histogram.add(inputs[None])
    quantization = Quantization(precision, {"x": histogram.range(precision)})
    numbers, scales = quantization.weight(columns, axis=0)
    scale = quantization.scale("x", torch.float32).to(x.device)
    read = stored(inputs / scale, quantization.dtype).float() * scale
    multiplied = numbers.float().to(x.device) * scales[:, None].to(x.device)
    return (read @ multiplied.T - x @ weight.T).square().sum().item()
