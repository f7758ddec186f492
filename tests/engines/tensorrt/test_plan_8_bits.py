"""What TensorRT-RTX makes of graphs in 8 bits."""

import re
from collections import Counter
from importlib.util import find_spec

import onnx
import pytest
from onnx_8_bits import PRECISION, product_names, quantized

from conformer_fast.engines.tensorrt.flavors import get_flavor
from conformer_fast.engines.tensorrt.plan import engine_from_onnx
from conformer_fast.model.shapes import Shapes

RTX = any(map(find_spec, ("tensorrt_rtx", "tensorrt_rtx_bindings")))


def layers(proto: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """(kind, type of the first input) of each layer that TensorRT-RTX makes of a graph, from its verbose log."""
    trt = get_flavor("tensorrt-rtx").module
    lines = []
    listen = {"log": lambda self, severity, text: lines.extend(text.splitlines())}
    logger = type("Logger", (trt.ILogger,), listen)()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(proto.SerializeToString())
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    shapes.set_shape("images", *Shapes((1, 2, 4), (64, 64, 64), (96, 96, 96)).with_channels(3))
    config.add_optimization_profile(shapes)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    layer = re.compile(r"Name: \S+, LayerType: (\w+), Inputs: \[ \{.*?Datatype: (\w+)")
    return Counter(found.groups() for found in map(layer.search, lines) if found)


@pytest.mark.skipif(not RTX, reason="needs TensorRT-RTX")
@PRECISION
def test_tensorrt_computes_every_product_in_8_bits(precision, small_model):
    """A product that it takes apart, as it does the joint projection of queries, keys and values if their split gives
    it reason to, it computes in 16 bits."""
    model, proto = quantized(small_model, precision)
    found, read = layers(proto), {"int8": "Int8", "fp8": "FP8"}[precision]
    matrices = {name for name in product_names(model) if re.search(r"\.(qkv|proj|fc1|fc2|up)$", name)}
    assert found["gemm", read] == len(matrices) == 4 * 3 + 2
    others = {"int8": {}, "fp8": {("correlation", "Half"): 1}}[precision]  # the stem: of three channels, not in FP8
    assert found["correlation", read] == len(product_names(model) - matrices) - sum(others.values())
    assert {kind: found[kind] for kind in found if kind[0] in ("gemm", "correlation") and kind[1] != read} == others
    assert found["runtime_fusion", "Float"] == 2  # the heads
    assert len([kind for kind in found if kind[0] == "runtime_fusion"]) == 1


@pytest.mark.skipif(not RTX, reason="needs TensorRT-RTX")
@PRECISION
def test_engines_are_built(precision, small_model, record_property):
    _, proto = quantized(small_model, precision)
    profile = Shapes((1, 2, 4), (64, 64, 64), (96, 96, 96))
    plan = engine_from_onnx(
        proto.SerializeToString(), [profile], get_flavor("tensorrt-rtx"), ("sm89", "sm120"), precision
    )
    record_property("table", ("engine for sm89 and sm120, bytes", "small", precision, len(plan)))
    assert len(plan) > proto.ByteSize()
