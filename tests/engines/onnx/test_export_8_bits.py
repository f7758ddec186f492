"""Exported graphs in 8 bits: which products are quantized, and where the rounding is."""

from collections import Counter, defaultdict
from dataclasses import replace

import goldens
import lookalikes
import onnx
import pytest
import torch
from eight_bits import is_result, largest_inputs
from onnx import TensorProto
from onnx_8_bits import DTYPE, PRECISION, product_names, quantized, session

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.onnx.typed_graph import ELEMENT_TYPES
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization, addend_of
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.distance import relative_error
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.reference import Conformer


class Graph:
    """An ONNX graph by what produces a value and what reads it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.constants = {value.name: value for value in proto.graph.initializer}
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                self.readers[value].append(node)

    def all(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in ops]

    def is_dequantized(self, value: str) -> bool:
        """Whether it was in 8 bits, and at most its axes have changed since."""
        while value in self.producer and self.producer[value].op_type in ("Unsqueeze", "Transpose"):
            value = self.producer[value].input[0]
        return value in self.producer and self.producer[value].op_type == "DequantizeLinear"

    def tensor(self, name: str) -> torch.Tensor:
        value = self.constants[name]
        dtype = next(dtype for dtype, element in ELEMENT_TYPES.items() if element == value.data_type)
        return torch.frombuffer(bytearray(value.raw_data), dtype=dtype).view(tuple(value.dims))

    def products(self) -> list[onnx.NodeProto]:
        """Convolutions and matrix products whose two inputs are both in 8 bits."""
        return [node for node in self.all("Conv", "MatMul") if all(map(self.is_dequantized, node.input[:2]))]

    def weight(self, product: onnx.NodeProto) -> torch.Tensor:
        """What the weight of a quantized product stands for, (out, in, ...)."""
        stored, scale = map(self.tensor, self.producer[product.input[1]].input[:2])
        axis = self.producer[product.input[1]].attribute[0].i
        shape = [-1 if dimension == axis else 1 for dimension in range(stored.ndim)]
        return (stored.float() * scale.float().view(shape)).transpose(0, axis)

    def names(self, model: InferenceConformer) -> Counter[str]:
        """Which weight of `model` each quantized product has, by its values."""
        known = {name: value.float() for name, value in model.named_buffers() if name.endswith(".weight")}
        found = Counter()
        for product in self.products():
            weight = self.weight(product)
            nearest = min(
                (relative_error(weight.view(other.shape), other), name)
                for name, other in known.items()
                if other.numel() == weight.numel() and other.shape[0] == weight.shape[0]
            )
            assert nearest[0] < 0.05
            found[nearest[1].removesuffix(".weight")] += 1
        return found


MODELS = {"small": {}, "patch-32": {"patch_size": 32}, "deep": {"depth": 6}, "tiny-p16": {}}


@pytest.fixture(
    scope="module", params=[(name, products) for name in MODELS for products in ("matmul", "conv")], ids="-".join
)
def case(request, small_config):
    """(inference model, its graph in INT8) of a small, some odd and a published model, products written in each way."""
    name, products = request.param
    config = VARIANTS.get(name) or replace(small_config, **MODELS[name])
    return quantized(lookalikes.fill(Conformer(config)).eval(), products=products)


def test_every_product_is_in_8_bits_but_heads_and_attention(case):
    model, proto = case
    graph, depth = Graph(proto), model.config.depth
    assert graph.names(model) == Counter(product_names(model))
    quantized_nodes = graph.products()
    others = [node for node in graph.all("Conv", "MatMul", "Gemm") if node not in quantized_nodes]
    assert Counter(node.op_type for node in others) == {"Gemm": 2, "MatMul": 2 * depth}
    for node in others:
        assert not any(map(graph.is_dequantized, node.input)), node.name
    for node in graph.all("Softmax", "LayerNormalization", "Gelu", "AveragePool"):
        assert not any(map(graph.is_dequantized, node.input)), node.name


def test_the_stem_map_is_rounded_before_its_pool(case):
    """At its readers' scale: the convolution may write 8 bits, and the rounding after the pool changes nothing."""
    _, proto = case
    graph = Graph(proto)
    (pool,) = graph.all("MaxPool")
    assert graph.is_dequantized(pool.input[0])
    before = graph.producer[pool.input[0]]
    (pad,) = graph.all("Pad")
    (after,) = [node for node in graph.readers[pad.output[0]] if node.op_type == "QuantizeLinear"]
    scales = [graph.constants[node.input[1]].raw_data for node in (before, after)]
    assert scales[0] == scales[1]


def test_the_stem_map_is_not_rounded_before_its_pool_for_some_readers_only(small_model):
    _, proto = quantized(small_model, without="patch_embed")
    graph = Graph(proto)
    (pool,) = graph.all("MaxPool")
    assert not graph.is_dequantized(pool.input[0])


def test_no_bias_is_in_8_bits(case):
    model, proto = case
    graph, biases = Graph(proto), 0
    for product in graph.products():
        if product.op_type == "Conv":
            values = product.input[2:]
        else:
            (after,) = graph.readers[product.output[0]]
            assert after.op_type == "Add"
            values = after.input[1:]
        (bias,) = values
        assert graph.constants[bias].data_type == TensorProto.FLOAT16
        biases += 1
    assert biases == len(product_names(model))
    stored = {value for node in graph.all("DequantizeLinear") for value in node.input[:1]}
    assert min(len(graph.constants[value].dims) for value in stored & graph.constants.keys()) > 1


def test_what_a_bottleneck_adds_is_in_8_bits(case):
    model, proto = case
    graph = Graph(proto)
    sums = [node for node in graph.all("Add") if any(r.op_type == "Relu" for r in graph.readers[node.output[0]])]
    sums = [node for node in sums if graph.producer[node.input[0]].op_type == "Conv"]
    assert len(sums) == 1 + 2 * (model.config.depth - 1)
    projected = 0
    for node in sums:
        assert graph.is_dequantized(node.input[1])
        source = graph.producer[graph.producer[node.input[1]].input[0]]
        assert source.op_type == "QuantizeLinear"
        projected += graph.producer[source.input[0]].op_type == "Conv"
    assert projected == sum(name.endswith(".residual") for name in product_names(model)) >= 4


def test_one_pair_after_each_layer_norm(case):
    model, proto = case
    graph = Graph(proto)
    pairs = 0
    for norm in graph.all("LayerNormalization"):
        value = norm.output[0]
        moved = True
        while moved:  # to the type of products and, where these are convolutions, to their layout
            moved = [node for node in graph.readers[value] if node.op_type in ("Cast", "Unsqueeze", "Transpose")]
            value = moved[0].output[0] if moved else value
        readers = [node.op_type for node in graph.readers[value]]
        if "QuantizeLinear" in readers:
            assert readers == ["QuantizeLinear"]
            pairs += 1
    assert pairs == 2 * model.config.depth


def test_readers_of_a_value_share_its_pair(case):
    model, proto = case
    graph = Graph(proto)
    sources = Counter(node.input[0] for node in graph.all("QuantizeLinear"))
    assert max(sources.values()) == 1
    for node in graph.all("QuantizeLinear"):
        assert [reader.op_type for reader in graph.readers[node.output[0]]] == ["DequantizeLinear"]
        dequantize = graph.readers[node.output[0]][0]
        assert dequantize.input[1:] == node.input[1:]
    users = [
        tuple(sorted(user.op_type for user in graph.readers[graph.readers[node.output[0]][0].output[0]]))
        for node in graph.all("QuantizeLinear")
    ]
    projected = sum(name.endswith(".residual") for name in product_names(model))
    bottlenecks = 1 + 2 * (model.config.depth - 1)
    unpooled = sum(model.config.token_stride(block) == 1 for block in range(2, model.config.depth + 1))
    assert Counter(kinds for kinds in users if len(kinds) > 1) == {
        ("Conv", "Conv", "Conv"): 1,  # the stem map: both of block 1, and the patches
        ("Conv", "Conv"): projected - 1 + unpooled,  # a bottleneck's first and its residual; FCU-down and its third
        ("Add", "Conv"): bottlenecks - projected,
    }


@DTYPE
@pytest.mark.parametrize("products", ["matmul", "conv"])
@PRECISION
def test_graphs_of_every_type_are_valid(precision, products, dtype, small_model):
    """8 bits beside each type: weights in 8 bits, scales and biases in the type, all else as without."""
    model, proto = quantized(small_model, precision, dtype, products=products)
    onnx.checker.check_model(proto, full_check=True)
    graph = Graph(proto)
    assert graph.names(model) == Counter(product_names(model))
    for node in graph.all("DequantizeLinear"):
        assert graph.constants[node.input[1]].data_type == ELEMENT_TYPES[dtype]
        assert graph.constants[node.input[2]].data_type == ELEMENT_TYPES[FORMATS[precision]]
        assert not any(graph.constants[node.input[2]].raw_data)  # symmetric
    plain = Counter(node.op_type for node in onnx_from_model(model, products).graph.node)
    added = Counter(node.op_type for node in graph.nodes)
    expected = {op: added[op] for op in ("QuantizeLinear", "DequantizeLinear")}
    if precision == "fp8":  # the bias of a convolution is a node of its own
        expected["Add"] = sum(node.op_type == "Conv" and len(node.input) == 2 for node in graph.nodes)
        assert expected["Add"] == added["Conv"]
    assert added - plain == expected
    assert not plain - added


@pytest.mark.slow
@PRECISION
def test_weights_take_a_byte_each(precision):
    model, proto = quantized(lookalikes.fill(Conformer(VARIANTS["tiny-p16"])).eval(), precision)
    plain = onnx_from_model(lower(Conformer(VARIANTS["tiny-p16"]).eval()))
    element = ELEMENT_TYPES[FORMATS[precision]]
    taken = sum(len(value.raw_data) for value in proto.graph.initializer if value.data_type == element)
    weights = sum(model.get_buffer(f"{name}.weight").numel() for name in product_names(model))
    assert weights <= taken <= 1.01 * weights  # and a zero for each channel
    assert 0.25 < proto.ByteSize() / plain.ByteSize() < 0.3  # the heads are in fp32


@pytest.mark.parametrize(
    "left_out",
    ["stem", "patch_embed", "conv_1.conv2", "trans_1.qkv", "conv_trans_2.down.project", "conv_trans_3.up",
     "conv_trans_3.fusion_block.residual", addend_of("conv_trans_2.fusion_block.conv3")],
)  # fmt: skip
def test_one_product_can_stay_in_16_bits(left_out, small_model):
    model, whole = quantized(small_model)
    _, part = quantized(small_model, without=left_out)
    onnx.checker.check_model(part, full_check=True)
    before, after = Counter(Graph(whole).names(model)), Counter(Graph(part).names(model))
    assert before - after == ({} if left_out.endswith(".addend") else {left_out: 1})
    removed, added = (
        Counter(bytes(value.raw_data) for value in one.graph.initializer)
        - Counter(bytes(value.raw_data) for value in other.graph.initializer)
        for one, other in ((whole, part), (part, whole))
    )
    if left_out.endswith(".addend"):
        assert not added
        assert not removed  # its value is read by the next product too, whose pair it was
    else:
        weight = model.get_buffer(f"{left_out}.weight")
        plain = weight.t() if left_out in ("trans_1.qkv", "conv_trans_3.up") else weight
        assert added == {plain.contiguous().view(torch.uint8).numpy().tobytes(): 1}
        # The weight, its scales and zeros, those of an input it alone read, and of the stem's map before the pool.
        assert sum(removed.values()) <= (7 if left_out == "stem" else 5)
    scores = [sum(session(proto).run(None, {"images": goldens.image(2, 64, 96).numpy()})) for proto in (whole, part)]
    assert 0 < relative_error(*map(torch.from_numpy, scores)) < 0.05


@PRECISION
def test_what_attention_reads_is_in_8_bits_if_asked_for(precision, small_model):
    fused, images = lower(small_model), goldens.image(2, 50, 70)
    ranges = largest_inputs(fused, [images])
    plain, attended = (fused.quantized(Quantization(precision, ranges), attended) for attended in (False, True))
    usual, proto = (onnx_from_model(model, products="conv") for model in (plain, attended))
    before, after = (sum(node.op_type == "QuantizeLinear" for node in one.graph.node) for one in (usual, proto))
    assert after - before == sum(map(is_result, ranges)) == small_model.config.depth
    scores = torch.from_numpy(sum(session(proto).run(None, {"images": images.numpy()})))
    expected, without, exact = (sum(network(images)) for network in (attended, plain, fused))
    assert relative_error(scores, expected) < 0.5 * relative_error(expected, exact)
    assert not torch.equal(expected, without)


@PRECISION
def test_both_ways_of_writing_products_agree(precision, small_model):
    """In fp32, where a sum's order changes few roundings to 8 bits."""
    images = {"images": goldens.image(2, 50, 70).numpy()}
    graphs = [quantized(small_model, precision, torch.float32, products=way)[1] for way in ("matmul", "conv")]
    results = [map(torch.from_numpy, session(proto).run(None, images)) for proto in graphs]
    for first, second in zip(*results, strict=True):
        assert relative_error(first, second) < 0.01
