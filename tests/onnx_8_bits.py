"""Graphs in 8 bits: made of a model, executed by ONNX Runtime, and which products they should have in 8 bits."""

import goldens
import onnx
import onnxruntime
import pytest
import torch
from eight_bits import largest_inputs

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.reference import Conformer

PRECISIONS = list(FORMATS)
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
DTYPE = pytest.mark.parametrize("dtype", FLOATS, ids=str)
PRECISION = pytest.mark.parametrize("precision", PRECISIONS)
UNQUANTIZED = {"conv_head", "trans_head"}


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """ONNX Runtime without its rewriting: node by node, as the graph is written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def quantized(
    model: Conformer, precision: str = "int8", dtype: torch.dtype = torch.float16, without: str = "", **arguments
) -> tuple[InferenceConformer, onnx.ModelProto]:
    """The inference model in `dtype` and its graph in 8 bits, one product left out."""
    fused = lower(model)
    ranges = largest_inputs(fused, [goldens.image(2, 64, 96)])
    ranges.pop(without, None)
    typed = fused.in_precision(dtype)
    return typed, onnx_from_model(typed.quantized(Quantization(precision, ranges)), **arguments)


def product_names(model: InferenceConformer) -> set[str]:
    """Every product that is to be in 8 bits."""
    names = {name for name, value in model.named_buffers() if name.endswith(".weight") and value.ndim > 1}
    return {name.removesuffix(".weight") for name in names} - UNQUANTIZED
