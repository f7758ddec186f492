"""8-bit products on CPUs without instructions for them (x86 without VNNI): OpenVINO adds products in pairs there, in 16
bits, and what does not fit is cut off. Results are then wrong, the more the larger the numbers are.

onnx/fitting_pairs.py makes weights of which every pair fits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import executors
from .runtime import ov

CHANNELS = 64
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}


@cache
def pairs_are_cut_off() -> bool:
    """Whether this CPU does that, found by one product of the largest numbers."""
    zero, top = np.float32(0), np.float32(255)
    largest = np.full((1, CHANNELS, 1, 1), top)
    weight = np.full((1, CHANNELS, 1, 1), 127, np.int8)
    operator = ov.opset13
    image = operator.parameter([*largest.shape], np.float32)
    in_8_bits = operator.fake_quantize(image, zero, top, zero, top, 256)
    weights = operator.multiply(operator.convert(weight, np.float32), np.full((1, 1, 1, 1), 0.5, np.float32))
    product = operator.convolution(in_8_bits, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    compiled = executors.compile_for_good(ov.Model([product], [image]), OPTIONS)
    return float(compiled(largest)[0].item()) < CHANNELS * 255 * 127 * 0.5
