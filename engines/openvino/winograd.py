"""3x3 convolutions in fp32 as an operation of our own in OpenVINO's graph: csrc/winograd.h.

Each takes 36 products where OpenVINO takes 144. Reading and writing its tiles, and weights four times as large, cost
more than that saves on small maps, so that only large ones go through it, of networks that return maps: backbones and
detectors.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from conformer_fast.extension import unusable

from .eight_bits import constant
from .runtime import ov

MAP_DIMENSIONS = 4
FEWEST_PIXELS, FEWEST_OPERATIONS = 1000, 0.5e9
MULTIPLE = 32  # of channels, see csrc/winograd.h
TO_CHANNELS_LAST, BACK = [0, 2, 3, 1], [0, 3, 1, 2]
AROUND = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}


@cache
def winograd_is_faster() -> bool:
    """Whether this CPU has a kernel that is faster than OpenVINO's: csrc/ was built, and there are AVX2 or AVX-512."""
    if unusable():
        return False
    from conformer_fast import _C

    return _C.instruction_sets()[0] != "portable"


def returns_maps(xml: bytes) -> bool:
    """Whether a network in OpenVINO's own form does."""
    results = re.findall(rb'type="Result".*?</layer>', xml, re.DOTALL)
    return any(result.count(b"<dim>") == MAP_DIMENSIONS for result in results)


_NAMED = type("Convolution3x3", (), {})()  # the name of its type is the operation's


class Convolution3x3(ov.Op):
    """maps (B, H, W, C), weights (K, C, 3, 3), bias (K,), threads (1,) -> maps (B, H, W, K). Zeros are around the maps.

    All are float32 but for threads, int32: how many it may use.
    """

    def __init__(self, inputs: list[ov.Output], relu: bool, copies: list[Convolution3x3]) -> None:
        """copies: takes those that OpenVINO makes of it. They compute as long as they are kept there."""
        super().__init__(_NAMED, inputs)  # OpenVINO's example gives itself: the two then keep each other for good
        self._relu, self._copies = relu, copies
        self._weights: np.ndarray | None = None

    def validate_and_infer_types(self) -> None:
        *around, _ = self.get_input_partial_shape(0)
        outputs = self.get_input_partial_shape(1)[0]
        self.set_output_type(0, ov.Type.f32, ov.PartialShape([*around, outputs]))

    def clone_with_new_inputs(self, new_inputs: list[ov.Output]) -> ov.Node:
        copy = Convolution3x3(new_inputs, self._relu, self._copies)
        shape = copy.get_output_partial_shape(0)
        if shape.is_static and self.get_output_partial_shape(0).is_dynamic:  # each run asks for its shapes so
            return ov.opset13.parameter(shape.to_shape(), np.float32)
        self._copies.append(copy)
        return copy

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[ov.Tensor], inputs: list[ov.Tensor]) -> bool:
        from conformer_fast import _C

        maps, weights, bias, threads = (tensor.data for tensor in inputs)
        if self._weights is None:  # its weights are constant
            self._weights = _C.winograd_weights(weights)
        _C.winograd(maps, self._weights, bias, self._relu, outputs[0].data, int(threads[0]))
        return True


class _Place(NamedTuple):
    """A convolution; its bias, (K,); and what returns its result: that of the ReLU, if nothing else reads it before."""

    convolution: ov.Node
    bias: np.ndarray
    last: ov.Node


class Replaced(NamedTuple):
    """To be kept: `operations` until the model is compiled, then the `copies` that this makes of them, as long as the
    engine, and then to be cleared."""

    operations: list[Convolution3x3]
    copies: list[Convolution3x3]


def use_winograd(model: ov.Model) -> Replaced:
    """Puts it for each convolution that gains by it. If there are any, the model has another input then, int32 (1,):
    how many threads they may use. A map of unknown size counts as large."""
    replaced = Replaced([], [])
    threads = ov.opset13.parameter([1], np.int32)
    places = [place for node in model.get_ordered_ops() if (place := _place(node)) and _pays(node)]
    for convolution, bias, last in places:
        maps, weights = _channels_last(convolution.input_value(0)), convolution.input_value(1)
        bias = ov.opset13.constant(bias).output(0)
        relu = last.get_type_name() == "Relu"
        replaced.operations.append(Convolution3x3([maps, weights, bias, threads.output(0)], relu, replaced.copies))
        result = replaced.operations[-1].output(0)
        for reader in _readers(last):
            if _is_transpose(reader, TO_CHANNELS_LAST):
                reader.output(0).replace(result)
        last.output(0).replace(ov.opset13.transpose(result, BACK).output(0))
    if places:
        model.add_parameters([threads])
    return replaced


def _place(node: ov.Node) -> _Place | None:
    """Where it is such a convolution."""
    if node.get_type_name() != "Convolution":
        return None
    attributes, weights = node.get_attributes(), node.input_value(1)
    outputs, channels, *window = weights.shape
    if window != [3, 3] or any(list(attributes[name]) != value for name, value in AROUND.items()):
        return None
    if outputs % MULTIPLE or channels % MULTIPLE or constant(weights) is not weights.get_node():
        return None
    # A bias has the shape of the result, which may be asked for it.
    readers = [reader for reader in _readers(node) if reader.get_type_name() != "ShapeOf"]
    if [reader.get_type_name() for reader in readers] != ["Add"]:
        return None
    added = readers[0].input_value(1)
    bias = constant(added)
    if bias is None or bias.data.size != outputs or [*added.shape] not in ([outputs, 1, 1], [1, outputs, 1, 1]):
        return None
    after = _readers(readers[0])
    relu = [reader.get_type_name() for reader in after] == ["Relu"]
    return _Place(node, bias.data.reshape(-1), after[0] if relu else readers[0])


def _pays(convolution: ov.Node) -> bool:
    shape = convolution.get_output_partial_shape(0)
    if shape.is_dynamic:
        return True
    images, outputs, height, width = shape.to_shape()
    pixels, channels = images * height * width, convolution.input_value(1).shape[1]
    return pixels >= FEWEST_PIXELS and 2 * 9 * pixels * channels * outputs >= FEWEST_OPERATIONS


def _channels_last(maps: ov.Output) -> ov.Output:
    node = maps.get_node()
    if _is_transpose(node, BACK):
        return node.input_value(0)
    return ov.opset13.transpose(maps, TO_CHANNELS_LAST).output(0)


def _is_transpose(node: ov.Node, order: list[int]) -> bool:
    given = constant(node.input_value(1)) if node.get_type_name() == "Transpose" else None
    return given is not None and list(given.data) == order


def _readers(node: ov.Node) -> list[ov.Node]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]
