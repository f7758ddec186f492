"""8-bit products of CPUs without instructions for them, which cut off what two products are over 16 bits together."""

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

import conformer_fast as cf
from conformer_fast.engines.onnx.typed_graph import TypedGraph
from conformer_fast.engines.openvino import engine
from conformer_fast.engines.openvino.eight_bits import MOST_OF_A_PAIR, make_pairs_fit, pairs_are_cut_off
from conformer_fast.engines.openvino.engine import Computed, Input, engine_fields
from conformer_fast.engines.openvino.runtime import core, ov

K = 64


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
