"""Additions in convolutions and averages of 8-bit numbers: where they are made, and that they change nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.onnx.typed_graph import TypedGraph
from conformer_fast.engines.openvino.eight_bits import use_all_numbers
from conformer_fast.engines.openvino.maps_in_8_bits import add_in_convolutions, average_in_8_bits
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceBlock, InferenceBottleneck, InferenceConformer

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
K, SIDE = 16, 8
STEP = 0.5  # of a sum in 8 bits
IMAGES = np.random.default_rng(0).uniform(-140, 140, (1, K, SIDE, SIDE)).astype(np.float32)


def flags() -> str:
    """Of this CPU."""
    found = Path("/proc/cpuinfo")
    return found.read_text() if found.exists() else ""


def quantized(graph: TypedGraph, value: str, scale: float) -> str:
    return graph.quantized(value, torch.tensor(scale), torch.int8)


def bottleneck(added, after) -> ov.Model:
    """relu(convolution + what `added` makes of images), read as `after` says."""
    graph, generator = TypedGraph(), torch.Generator().manual_seed(0)
    images = graph.input("images", torch.float32)
    weight = graph.weight(
        torch.randint(-127, 128, (K, K, 1, 1), dtype=torch.int8, generator=generator), torch.ones(K) / 500
    )
    product = graph.node("Conv", [quantized(graph, images, 1.0), weight, torch.linspace(-9, 9, K)])
    outputs = after(graph, graph.node("Add", [product, added(graph, images)]))
    for name, value in outputs.items():
        graph.node("Identity", [value], output=name)
    content = graph.model({"images": [1, K, SIDE, SIDE]}, {name: [None] * 4 for name in outputs}).SerializeToString()
    return core().read_model(content)


def signed(graph: TypedGraph, images: str) -> str:
    return quantized(graph, images, 0.9)


def unsigned(graph: TypedGraph, images: str) -> str:
    return quantized(graph, graph.node("Relu", [images]), 0.9)


def read(graph: TypedGraph, total: str) -> dict[str, str]:
    return {"out": quantized(graph, graph.node("Relu", [total]), STEP)}


def results(model: ov.Model, images: np.ndarray = IMAGES) -> list[np.ndarray]:
    return [*core().compile_model(model, "CPU", F32)(images).values()]


@pytest.mark.parametrize("added", [signed, unsigned])
def test_an_addition_is_the_same(added):
    """Of sums far beyond what is kept of them, too."""
    before, after = bottleneck(added, read), bottleneck(added, read)
    assert use_all_numbers(before) == use_all_numbers(after)
    assert add_in_convolutions(before) == 1
    (found,), (expected,) = results(before), results(after)
    assert (expected > 60).mean() > 0.05 < (expected == 0).mean()
    assert np.abs(found - expected).max() <= 1.01 * STEP
    assert (np.abs(found - expected) > 0.01 * STEP).mean() < 0.01


def as_it_is(graph: TypedGraph, images: str) -> str:
    return images


def without_relu(graph: TypedGraph, total: str) -> dict[str, str]:
    return {"out": quantized(graph, total, STEP)}


def read_otherwise(graph: TypedGraph, total: str) -> dict[str, str]:
    relu = graph.node("Relu", [total])
    return {"out": quantized(graph, relu, STEP), "exact": relu}


def both_signs(graph: TypedGraph, total: str) -> dict[str, str]:
    return {"out": quantized(graph, graph.node("Relu", [total]), STEP), "negative": total}


@pytest.mark.parametrize(
    ("added", "after"),
    [(as_it_is, read), (signed, without_relu), (signed, read_otherwise), (signed, both_signs)],
)
def test_what_is_not_in_8_bits_is_left_alone(added, after):
    assert add_in_convolutions(bottleneck(added, after)) == 0


def averages(scale: float | None, others: int = 0) -> ov.Model:
    """Of a map behind ReLU that is also read in 8 bits, and otherwise."""
    graph = TypedGraph()
    relu = graph.node("Relu", [graph.input("images", torch.float32)])
    values = [graph.node("AveragePool", [relu], kernel_shape=[2, 2], strides=[2, 2])]
    values += [quantized(graph, relu, scale)] if scale else []
    values += [graph.node("Sqrt", [relu]) for _ in range(others)]
    names = [f"out{index}" for index in range(len(values))]
    for name, value in zip(names, values, strict=True):
        graph.node("Identity", [value], output=name)
    content = graph.model({"images": [1, K, SIDE, SIDE]}, {name: [None] * 4 for name in names}).SerializeToString()
    return core().read_model(content)


def test_an_average_of_numbers():
    model = averages(STEP)
    assert average_in_8_bits(model) == 0  # signed numbers, which stand at a scale of their own
    assert use_all_numbers(model) == 1
    expected = results(model)[0]
    assert average_in_8_bits(model) == 1
    found = results(model)[0]
    kept = IMAGES.clip(0, 127 * STEP).reshape(K, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4))
    assert np.abs(found[0] - kept).max() < 0.26 * STEP
    assert np.abs(found - expected).max() > STEP


@pytest.mark.parametrize(("scale", "others"), [(None, 0), (1.0, 1), (None, 1)])
def test_a_map_that_is_read_otherwise_is_averaged_itself(scale, others):
    model = averages(scale, others)
    use_all_numbers(model)
    assert average_in_8_bits(model) == 0


@pytest.fixture
def network(small_model) -> InferenceConformer:
    images = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    return lower(small_model, quantization=cf.calibrate(small_model, [images], precision="int8"))


def rewritten(network: InferenceConformer) -> tuple[ov.Model, int, int]:
    model = core().read_model(onnx_from_model(network, products="conv").SerializeToString())
    use_all_numbers(model)
    return model, add_in_convolutions(model), average_in_8_bits(model)


def test_of_a_network_all_but_what_is_read_in_full(network):
    bottlenecks = sum(isinstance(part, InferenceBottleneck) for part in network.modules())
    down = sum(isinstance(part, InferenceBlock) and part.token_stride > 1 for part in network.modules())
    assert rewritten(network)[1:] == (bottlenecks - 1, down)
    network = network.with_outputs(("2.map", "logits"))
    assert rewritten(network)[1:] == (bottlenecks - 2, down)


@pytest.mark.skipif("avx512f" not in flags(), reason="OpenVINO's convolutions add in 8 bits with AVX-512 alone")
def test_convolutions_add(network):
    """OpenVINO takes the hint: none of the additions is an operation of its own."""
    model, additions, _ = rewritten(network)
    model.reshape([1, 3, 32, 48])
    parts = [node.get_rt_info() for node in core().compile_model(model, "CPU", F32).get_runtime_model().get_ops()]
    layers = [(part["layerType"].astype(str), part["originalLayersNames"].astype(str)) for part in parts]
    assert (
        sum(kind == "Convolution" and ",Add" in names and "FakeQuantize" in names for kind, names in layers)
        >= additions
    )
