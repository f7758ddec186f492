"""What of the typed graph's 8 bits is other in an OpenVINO engine.

Values that are never negative, as ReLU leaves them, get all 256 numbers between 0 and their range: the typed graph has
signed ones, of which they would use half. So they are rounded half as coarsely. Most x86 CPUs multiply unsigned numbers
by signed ones, and what is signed must be shifted before and corrected after.

CPUs without instructions for 8-bit products (x86 without VNNI): OpenVINO adds products in pairs there, in 16 bits, and
what does not fit is cut off. Results are then wrong, the more the larger the numbers are. So there weights are made of
which every pair fits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import executors
from .runtime import ov

CHANNELS = 64
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
MOST_OF_A_PAIR = 128  # as inputs are 255 at most, and 255 * 128 < 2 ** 15
NUMBERS = 256
NEVER_NEGATIVE = {"Relu", "Softmax"}
KEEPING_SIGNS = {  # what is below 0 in their results was in their first input
    *("AvgPool", "Convert", "FakeQuantize", "Interpolate", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose"),
}
FROM_ALL = {"Add", "Concat", "Multiply"}  # the same, in any of their inputs
BETWEEN = {"Constant", "FakeQuantize", "Convert", "Subtract"}  # numbers and their scale: conversions and a zero point
SHAPING = {"Broadcast", "Convert", "Reshape", "Unsqueeze"}  # what gives a constant another type or shape


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
            multiply = _by_scale(stored)
            assert multiply is not None, f"{stored.get_friendly_name()} has no scale"
            shape = multiply.input_value(1).shape  # 1 but for the output channels
            scale = constant(multiply.input_value(1))
            assert scale is not None, f"the scale of {stored.get_friendly_name()} is computed"
            weight = stored.data.astype(np.float32)
            axis = int(np.argmax(shape))
            channels = np.moveaxis(np.abs(weight), axis, 0).reshape(shape[axis], -1)
            pairs = np.sort(channels, axis=1)[:, -2:].sum(1)
            factor = np.maximum(1, pairs / MOST_OF_A_PAIR).astype(np.float32)
            smaller = np.rint(weight / factor.reshape(shape)).astype(np.int8)
            _replace(stored, smaller)
            _replace(scale, scale.data * factor.reshape(scale.shape))


def use_all_numbers(model: ov.Model) -> int:
    """Where a value that is never negative is put in signed 8 bits, puts it in unsigned ones of half the step. Returns
    at how many places."""
    places = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and _never_negative(node.input_value(0)):
            top, end = constant(node.input_value(2)), _by_scale(node)
            if top is not None and end is not None:
                limits = np.zeros_like(top.data), top.data
                stored = ov.opset13.fake_quantize(node.input_value(0), *limits, *limits, NUMBERS)
                end.output(0).replace(ov.opset13.convert(stored, end.get_output_element_type(0).to_dtype()).output(0))
                places += 1
    return places


def _never_negative(value: ov.Output) -> bool:
    node = value.get_node()
    kind, inputs = node.get_type_name(), node.input_values()
    if kind == "Constant":
        return bool((node.data >= 0).all())
    if kind == "Subtract":  # of a zero point
        zero = constant(inputs[1])
        return zero is not None and not zero.data.any() and _never_negative(inputs[0])
    if kind == "Interpolate" and node.get_attributes()["mode"] != "nearest":  # others overshoot
        return False
    if kind in FROM_ALL:
        return all(map(_never_negative, inputs))
    if kind == "Pad":  # behind how much it pads, there is what with
        return all(map(_never_negative, (inputs[0], *inputs[3:])))
    return kind in NEVER_NEGATIVE or (kind in KEEPING_SIGNS and _never_negative(inputs[0]))


def _by_scale(node: ov.Node) -> ov.Node | None:
    """The multiplication of 8-bit numbers by their scale; None if there is more between than BETWEEN, or if others read
    what is."""
    while node.get_type_name() != "Multiply":
        readers = node.output(0).get_target_inputs()
        if node.get_type_name() not in BETWEEN or len(readers) != 1:
            return None
        node = next(iter(readers)).get_node()
    return node


def constant(value: ov.Output) -> ov.Node | None:
    """What gives it, behind what gives it another type and shape; None if it is computed."""
    node = value.get_node()
    while node.get_type_name() in SHAPING:
        node = node.input_value(0).get_node()
    return node if _is_constant(node) else None


def _is_constant(node: ov.Node) -> bool:
    return node.get_type_name() == "Constant"


def _replace(constant: ov.Node, values: np.ndarray) -> None:
    constant.output(0).replace(ov.opset13.constant(values).output(0))
