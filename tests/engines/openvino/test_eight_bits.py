"""What is never negative uses all 8-bit numbers; CPUs without 8-bit instructions, which cut off sums over 16 bits."""

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.onnx.typed_graph import TypedGraph
from conformer_fast.engines.openvino import engine
from conformer_fast.engines.openvino.eight_bits import (
    MOST_OF_A_PAIR,
    make_pairs_fit,
    pairs_are_cut_off,
    use_all_numbers,
)
from conformer_fast.engines.openvino.engine import Computed, Input, engine_fields
from conformer_fast.engines.openvino.ir import ir_of
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.inference.lower import lower

K = 64
RANGE = 127.0  # of what is in 8 bits: the signed numbers are 1 apart


def product(weight: torch.Tensor, scale: torch.Tensor, axis: int = 0) -> bytes:
    """Of images whose values are whole numbers."""
    graph = TypedGraph()
    images = graph.input("images", torch.float32)
    in_8_bits = graph.quantized(images, torch.tensor(1.0), torch.int8)
    op = "Conv" if weight.ndim == 4 else "MatMul"
    graph.node(op, [in_8_bits, graph.weight(weight, scale, axis)], output="out")
    shape = [1, K, 4, 4] if op == "Conv" else [1, 4, K]
    return graph.model({"images": shape}, {"out": [None] * len(shape)}).SerializeToString()


def fitting(graph: bytes) -> ov.Model:
    model = core().read_model(graph)
    make_pairs_fit(model)
    return model


def weights_of(model: ov.Model) -> tuple[np.ndarray, np.ndarray]:
    """The 8-bit weights of the product, and their scales."""
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    (stored,) = [node.data for node in constants if node.get_element_type() == ov.Type.i8 and node.data.size > 40]
    (scales,) = [node.data for node in constants if node.get_element_type() == ov.Type.f32 and node.data.size == 40]
    return stored, scales


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers(size, sign):
    weight, scale = torch.full((8, K, size, size), sign * 127, dtype=torch.int8), torch.full((8,), 0.5)
    graph = product(weight, scale)
    images = np.full((1, K, 4, 4), 127, np.float32)
    expected = 0.5 * sign * 127 * 127 * K * size**2

    def found(model: ov.Model) -> np.ndarray:
        return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]

    assert np.allclose(found(fitting(graph)), expected, rtol=0.01)
    assert np.allclose(found(core().read_model(graph)), expected, rtol=0.01) != pairs_are_cut_off()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_two_largest_weights_of_a_channel_fit(axis):
    whole = torch.randint(-127, 128, (40, K), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    whole[0], whole[1], whole[2, :3] = 127, 0, torch.tensor([127, -127, 3])
    whole[3] = torch.arange(K) % 2  # these fit
    scale = torch.rand(40) + 0.1
    graph = product(whole[:, :, None, None], scale) if axis == 0 else product(whole.t(), scale, axis)
    smaller, larger = weights_of(fitting(graph))
    smaller = (smaller if axis == 0 else smaller.T).reshape(40, K)
    assert (np.sort(np.abs(smaller.astype(int)), axis=1)[:, -2:].sum(1) <= MOST_OF_A_PAIR).all()
    errors = np.abs(smaller * larger[:, None] - whole.numpy() * scale.numpy()[:, None])
    assert (errors <= 0.5001 * larger[:, None]).all()
    assert (larger <= 2 * scale.numpy()).all()
    for channel in (1, 3):
        assert (smaller[channel] == whole[channel].numpy()).all()
        assert larger[channel] == scale[channel]


@pytest.mark.slow
def test_an_engine_of_such_a_cpu(small_model, monkeypatch):
    """Built for it, whatever this one is: another engine than for other CPUs, and within the same bound."""
    images = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    quantization = cf.calibrate(small_model, [images], precision="int8")
    found = []
    for cut_off in (True, False):
        monkeypatch.setattr(engine, "pairs_are_cut_off", lambda cut_off=cut_off: cut_off)
        fast = cf.compile(small_model, backend="openvino", precision="int8", quantization=quantization)
        found.append((fast(images).conv_logits, engine_fields("0" * 64, Computed("int8", "fp32"), Input(1, 32, 48))))
        if cut_off or not pairs_are_cut_off():
            assert fast.verify(images).within
    (with_fitting, fields), (without, other) = found
    assert not torch.equal(with_fitting, without)
    assert fields != other
    assert engine_fields("0" * 64, Computed("fp32", "fp32"), Input(1, 32, 48)).keys() == other.keys()


def rounded(value) -> tuple[int, float]:
    """At how many places what `value` makes of images uses all numbers, and how far it is from that then, but for what
    is out of range."""
    graph = TypedGraph()
    exact = value(graph, graph.input("images", torch.float32))
    graph.node("Identity", [graph.quantized(exact, torch.tensor(1.0), torch.int8)], output="out")
    graph.node("Identity", [exact], output="exact")
    shapes = {name: [None] * 4 for name in ("out", "exact")}
    content = graph.model({"images": [1, 4, 8, 8]}, shapes).SerializeToString()
    ir = ir_of(content, "int8")
    compiled = core().compile_model(
        core().read_model(ir.xml, bytes(ir.weights)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    out, exact = compiled(RANGE * (2 * torch.rand(1, 4, 8, 8) - 1).numpy()).values()
    return use_all_numbers(core().read_model(content)), np.abs(out - exact.clip(-RANGE - 1, RANGE)).max()


def relu(graph: TypedGraph, value: str) -> str:
    return graph.node("Relu", [value])


def node(op: str, *others, **attributes):
    """An operation on what ReLU leaves of images, and on others."""
    return lambda graph, value: graph.node(op, [relu(graph, value), *others], **attributes)


def pooled(graph: TypedGraph, value: str) -> str:
    value = graph.node("MaxPool", [relu(graph, value)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    value = graph.node("Pad", [value, [0, 0, 0, 0, 0, 0, 3, 3]])
    return graph.node("AveragePool", [value], kernel_shape=[2, 2], strides=[2, 2])


def stored(graph: TypedGraph, value: str) -> str:
    """What was in 8 bits before, exactly."""
    value = graph.quantized(relu(graph, value), torch.tensor(2.0), torch.int8)
    return graph.node("Transpose", [value], perm=[0, 1, 3, 2])


def resized(mode: str):
    scales = torch.tensor([1.0, 1.0, 2.0, 2.0])
    return lambda graph, value: graph.node("Resize", [relu(graph, value), "", scales], mode=mode)


BOTH_SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None, None]
NEVER_NEGATIVE = {
    "ReLU": relu,
    "pools": pooled,
    "8 bits": stored,
    "sum": lambda graph, value: graph.node("Add", [relu(graph, value), stored(graph, value)]),
    "added constant": node("Add", BOTH_SIGNS.abs()),
    "concatenation": lambda graph, value: graph.node("Concat", [relu(graph, value)] * 2, axis=1),
    "rows": node("Slice", [1], [3], [2]),
    "softmax": lambda graph, value: graph.node("Softmax", [value]),
    "nearest": resized("nearest"),
}
MAYBE_NEGATIVE = {
    "images": lambda graph, value: value,
    "GELU": lambda graph, value: graph.node("Gelu", [value]),
    "sum": lambda graph, value: graph.node("Add", [relu(graph, value), value]),
    "added constant": node("Add", BOTH_SIGNS),
    "difference": node("Sub", torch.tensor(0.5)),
    "product": node("Mul", torch.tensor(-1.0)),
    "padding": node("Pad", [0] * 7 + [3], torch.tensor(-1.0)),
    "concatenation": lambda graph, value: graph.node("Concat", [relu(graph, value), value], axis=1),
    "convolution": node("Conv", torch.full((4, 4, 1, 1), -0.25)),
    "cubic": resized("cubic"),
}


@pytest.mark.parametrize("value", NEVER_NEGATIVE.values(), ids=NEVER_NEGATIVE)
def test_what_is_never_negative_is_rounded_half_as_coarsely(value):
    places, error = rounded(value)
    assert places == (2 if value in (NEVER_NEGATIVE["8 bits"], NEVER_NEGATIVE["sum"]) else 1)
    assert error < 0.26


@pytest.mark.parametrize("value", MAYBE_NEGATIVE.values(), ids=MAYBE_NEGATIVE)
def test_what_may_be_negative_is_not(value):
    places, error = rounded(value)
    assert places == 0
    assert 0.3 < error < 0.51


@pytest.mark.parametrize("between", ["two readers", "a pool"])
def test_a_pair_that_is_no_pair_stays(between):
    """An operation on 8-bit numbers, and numbers that are read at two scales: our graphs have neither."""
    graph = TypedGraph()
    images = graph.input("images", torch.float32)
    zero, one, two = torch.zeros((), dtype=torch.int8), torch.tensor(1.0), torch.tensor(2.0)
    numbers = graph.node("QuantizeLinear", [relu(graph, images), one, zero], dtype=torch.int8)
    if between == "a pool":
        numbers = graph.node("MaxPool", [numbers], kernel_shape=[2, 2], strides=[2, 2])
    outputs = {"out": one} if between == "a pool" else {"out": one, "twice": two}
    for name, scale in outputs.items():
        graph.node("DequantizeLinear", [numbers, scale, zero], name, dtype=torch.float32)
    content = graph.model({"images": [1, 4, 8, 8]}, {name: [None] * 4 for name in outputs}).SerializeToString()
    assert use_all_numbers(core().read_model(content)) == 0


def test_of_a_network_all_that_is_never_negative(small_model):
    """Found in the graph as it is found in values."""
    images = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    quantization = cf.calibrate(small_model, [images], precision="int8")
    network = lower(small_model, quantization=quantization)
    model = core().read_model(onnx_from_model(network, products="conv").SerializeToString())
    stored = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    model.add_outputs([node.input_value(0) for node in stored])
    values = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images.numpy())
    least = [value.min() for value in [*values.values()][len(network.outputs) :]]
    assert len(least) == len(stored)
    assert use_all_numbers(model) == sum(value >= 0 for value in least) > len(stored) / 3
