"""8-bit weights for who adds products in pairs, in 16 bits: no pair is cut off, as inputs are 255 at most."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

MOST_OF_A_PAIR = 128  # 255 * 128 < 2 ** 15


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
