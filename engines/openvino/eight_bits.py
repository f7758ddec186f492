"""8-bit products on CPUs without instructions for them (x86 without VNNI): OpenVINO adds products in pairs there, in 16
bits, and what does not fit is cut off. Results are then wrong, the more the larger the numbers are. So there weights
are made of which every pair fits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import executors
from .runtime import ov

CHANNELS = 64
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
MOST_OF_A_PAIR = 128  # as inputs are 255 at most, and 255 * 128 < 2 ** 15


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


def make_pairs_fit(model: ov.Model) -> None:
    """Where the two largest 8-bit weights of an output channel are over MOST_OF_A_PAIR, makes all of it smaller, at a
    larger scale."""
    for stored in model.get_ops():
        if _is_constant(stored) and stored.get_element_type() == ov.Type.i8 and len(stored.shape) > 1:
            multiply = stored
            while multiply.get_type_name() != "Multiply":  # by the scales, behind a conversion and a zero point
                (reader,) = multiply.output(0).get_target_inputs()
                multiply = reader.get_node()
            shape = multiply.input_value(1).shape  # 1 but for the output channels
            scale = multiply.input_value(1).get_node()
            while not _is_constant(scale):  # behind what gives it that shape
                scale = scale.input_value(0).get_node()
            weight = stored.data.astype(np.float32)
            axis = int(np.argmax(shape))
            channels = np.moveaxis(np.abs(weight), axis, 0).reshape(shape[axis], -1)
            pairs = np.sort(channels, axis=1)[:, -2:].sum(1)
            factor = np.maximum(1, pairs / MOST_OF_A_PAIR).astype(np.float32)
            smaller = np.rint(weight / factor.reshape(shape)).astype(np.int8)
            _replace(stored, smaller)
            _replace(scale, scale.data * factor.reshape(scale.shape))


def _is_constant(node: ov.Node) -> bool:
    return node.get_type_name() == "Constant"


def _replace(constant: ov.Node, values: np.ndarray) -> None:
    constant.output(0).replace(ov.opset13.constant(values).output(0))
