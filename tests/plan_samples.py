"""What the tests of TensorRT's builder share: shapes to build for, and a graph in 8 bits."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from conformer_fast.model.shapes import Shapes

FIXED = Shapes((1, 1, 1), (64, 64, 64), (64, 64, 64))
DYNAMIC = Shapes((1, 2, 4), (32, 64, 224), (48, 64, 224))


def quantized_graph(dtype: int) -> bytes:
    """One 8-bit convolution."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    constants = [
        helper.make_tensor("zero", dtype, [], [0]),
        helper.make_tensor("zeros", dtype, [16], [0] * 16),
        numpy_helper.from_array(np.float32(0.05), "scale"),
        numpy_helper.from_array(np.full(16, 0.01, np.float32), "scales"),
        numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "weight"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("QuantizeLinear", ["weight", "scales", "zeros"], ["qw"], axis=0),
        helper.make_node("DequantizeLinear", ["qw", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["result"]),
    ]
    made = helper.make_graph(nodes, "quantized", [images], [result], constants)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()
