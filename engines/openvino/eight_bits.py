"""8-bit products on CPUs without instructions for them (x86 without VNNI): OpenVINO adds products in pairs there, in 16
bits, and what does not fit is cut off. Results are then wrong, the more the larger the numbers are.

Where no two weights of an output channel are over MOST_OF_A_PAIR together, every pair fits: inputs are 255 at most.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

from . import executors
from .runtime import core, ov

MOST_OF_A_PAIR = 128  # 255 * 128 < 2 ** 15
CHANNELS = 64
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
_kept: list[ov.CompiledModel] = []  # or its threads would wait for the next engine, which no forked process may have


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
    executors.take(executors.key_of(OPTIONS))
    _kept.append(core().compile_model(ov.Model([product], [image]), "CPU", OPTIONS))
    return float(_kept[-1](largest)[0].item()) < CHANNELS * 255 * 127 * 0.5


def with_fitting_pairs(graph: bytes) -> bytes:
    """An ONNX graph in which no pair is cut off: where the two largest 8-bit weights of an output channel are over
    MOST_OF_A_PAIR, all of it are smaller, at a larger scale."""
    model = onnx.load_from_string(graph)
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            stored, scale = (constants[name] for name in node.input[:2])
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            weight = np.moveaxis(numpy_helper.to_array(stored).astype(np.float32), axis, -1)
            pairs = np.sort(np.abs(weight).reshape(-1, weight.shape[-1]), axis=0)[-2:].sum(0)
            factor = np.maximum(1, pairs / MOST_OF_A_PAIR)
            smaller = np.moveaxis(np.rint(weight / factor).astype(np.int8), -1, axis)
            stored.CopyFrom(numpy_helper.from_array(smaller, stored.name))
            scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * factor, scale.name))
    return model.SerializeToString()
