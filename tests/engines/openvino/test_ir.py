"""A network in OpenVINO's own form, and engines that take their weights from it."""

import hashlib

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import ir as ir_module
from conformer_fast.engines.openvino.engine import Computed, OpenVINOEngine
from conformer_fast.engines.openvino.ir import PRODUCTS, ir_of
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.inference.lower import lower

TIES = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 3.39e38, 1e-40, 0.0])


@pytest.fixture
def graph(small_model) -> bytes:
    with torch.no_grad():
        small_model.trans_cls_head.weight[0, : len(TIES)] = TIES
    return onnx_from_model(lower(small_model), products="conv").SerializeToString()


def nodes(graph: bytes, precision: str, *kinds: str) -> list[ov.Node]:
    ir = ir_of(graph, precision)
    found = core().read_model(ir.xml, bytes(ir.weights)).get_ops()
    return [node for node in found if node.get_type_name() in kinds]


def test_an_int8_network_with_signed_numbers_alone_is_made_anew(small_model, tmp_path, monkeypatch):
    """As the cache may have it, of the same graph."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    images = torch.randn(4, 3, 32, 32)
    network = lower(small_model, quantization=cf.calibrate(small_model, [images], precision="int8"))
    graph = onnx_from_model(network, products="conv").SerializeToString()
    sha256 = hashlib.sha256(graph).hexdigest()
    with monkeypatch.context() as before:
        before.setattr(ir_module, "FORMATS", ())
        signed = ir_module.cached_ir(lambda: graph, sha256, "int8")
    found = ir_module.cached_ir(lambda: graph, sha256, "int8")
    assert found.sha256 == ir_of(graph, "int8").sha256 != signed.sha256


def test_no_constant_is_beyond_32_bits(graph):
    """An engine without its weights reads 64 bits as the lower 32: the largest number as -1."""
    found = [node.data for node in nodes(graph, "fp32", "Constant") if node.get_element_type() == ov.Type.i64]
    assert len(found) > 10
    assert all(np.array_equal(values, values.astype(np.int32)) for values in found)


def test_weights_of_products_are_stored_in_bf16(graph):
    """Rounded as PyTorch rounds; all else in fp32."""

    def stored(precision: str, kind: ov.Type) -> set[bytes]:
        return {node.data.tobytes() for node in nodes(graph, precision, "Constant") if node.get_element_type() == kind}

    def rounded(values: bytes) -> bytes:
        tensor = torch.frombuffer(bytearray(values), dtype=torch.float32)
        return tensor.bfloat16().view(torch.int16).numpy().tobytes()

    whole, rest, narrow = stored("fp32", ov.Type.f32), stored("bf16", ov.Type.f32), stored("bf16", ov.Type.bf16)
    assert len(narrow) > 20
    assert rest < whole
    assert {rounded(values) for values in whole - rest} == narrow
    assert rounded(TIES.numpy().tobytes()) in {values[: 2 * len(TIES)] for values in narrow}
    readers = {node.input_value(1).get_node().get_type_name() for node in nodes(graph, "bf16", *PRODUCTS)}
    assert "Convert" in readers
    assert "Constant" not in readers


def test_engines_compute_with_them_what_they_compute_with_their_own(graph):
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
    model = core().read_model(graph)
    model.reshape([1, 3, 32, 48])
    expected = core().compile_model(model, "CPU", options)(images.numpy())
    values = OpenVINOEngine(lambda: ir_of(graph, "fp32"), Computed("fp32", "fp32"), 1)(images)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(values, expected.values(), strict=True))


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 1e-4, 3e-2), ("fp16", 1e-5, 3e-3)])
def test_narrow_weights_cost_their_rounding(precision, least, most, small_model):
    """And half of the bytes."""
    graph = onnx_from_model(lower(small_model), products="conv").SerializeToString()
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    whole, narrow = (ir_of(graph, name) for name in ("fp32", precision))
    assert len(narrow.weights) < 0.6 * len(whole.weights)
    results = [OpenVINOEngine(lambda ir=ir: ir, Computed("fp32", "fp32"), 1)(images) for ir in (whole, narrow)]
    for exact, rounded in zip(*results, strict=True):
        assert least < (rounded - exact).norm() / exact.norm() < most


def test_weights_in_8_bits_are_stored_in_8_bits(small_model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quantization = cf.calibrate(small_model, [images], precision="int8")
    found = nodes(
        onnx_from_model(lower(small_model, quantization=quantization), products="conv").SerializeToString(),
        "int8",
        "Constant",
    )
    weights = [node for node in found if len(node.shape) == 4 and node.data.size > 500]
    assert len(weights) > 20
    assert {str(node.get_element_type()) for node in weights} == {str(ov.Type.i8)}
