"""How far one tensor is from another, and how far it may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALLOWANCE = 2.0  # times PyTorch's own error
FLOOR = {  # relative error that is always allowed: about one rounding of the precision
    "fp32": 1e-6,  # some roundings of 6e-8, which add up
    "bf16": 4e-3,
    "fp16": 5e-4,
    "int8": 4e-3,  # around products in 8 bits values are in 16, maybe bf16; the products' own error is simulated
    "fp8": 4e-3,
}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected|| in float64, where `expected` is: 0 if both are all zeros, NaN if any value is
    not finite."""
    expected = expected.double()
    smallest = torch.finfo(torch.float64).tiny
    error = ((value.to(expected) - expected).norm() / expected.norm().clamp(min=smallest)).item()
    return error if math.isfinite(error) else math.nan


def top1_agreement(scores: Tensor, expected: Tensor) -> float:
    """The share of images whose highest score is of the expected class. scores: (B, classes). expected: scores too, or
    classes (B,); on the same device. An image with a score that is not finite, of either, agrees with nothing."""
    agree = scores.isfinite().all(-1)
    if expected.dim() == 1:
        agree &= scores.argmax(-1) == expected
    else:
        agree &= expected.isfinite().all(-1) & (scores.argmax(-1) == expected.argmax(-1))
    return agree.double().mean().item()


def sqnr_db(error: float) -> float:
    """The ratio of signal to noise of a relative error, in dB: infinite for 0, NaN for NaN."""
    return -20 * math.log10(error) if error else math.inf
