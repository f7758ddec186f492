"""A graph whose every value has a type: what is cast, what is refused, and constants that keep each of their bytes."""

import onnx
import onnxruntime
import pytest
import torch

from conformer_fast.engines.onnx.typed_graph import ELEMENT_TYPES, OPSET, OPSET_BF16, TypedGraph
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.precision import FORMATS

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def graph_of(*values: str) -> TypedGraph:
    """A graph with these fp32 inputs."""
    graph = TypedGraph()
    for value in values:
        graph.input(value, torch.float32)
    return graph


def finished(graph: TypedGraph, value: str, inputs=("x",), rank: int = 2) -> onnx.ModelProto:
    """The checked model of `graph` that returns `value` in fp32, as "y"."""
    graph.node("Identity", [graph.cast(value, torch.float32)], output="y")
    free = [None] * rank
    proto = graph.model(dict.fromkeys(inputs, free), {"y": free})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def nodes(proto: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == op]


def run(proto: onnx.ModelProto, **values: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in values.items()})[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cast_is_made_once_for_all_users(dtype):
    graph = graph_of("x", "z")
    first, again, other = graph.cast("x", dtype), graph.cast("x", dtype), graph.cast("z", dtype)
    assert first == again != other
    assert graph.type_of(first) == dtype
    assert graph.type_of("x") == torch.float32
    proto = finished(graph, graph.node("Add", [graph.node("Mul", [first, again]), other]), inputs=("x", "z"))
    targets = [cast.attribute[0].i for cast in nodes(proto, "Cast")]
    assert targets == [ELEMENT_TYPES[dtype], ELEMENT_TYPES[dtype], ELEMENT_TYPES[torch.float32]]


def test_a_value_is_cast_to_each_type_apart():
    graph = graph_of("x")
    casts = {graph.cast("x", dtype) for dtype in FLOATS}
    assert len(casts) == 3
    assert "x" in casts  # what has the type already


def test_types_are_not_mixed():
    graph = graph_of("x")
    half = graph.cast("x", torch.float16)
    with pytest.raises(TypeError, match=rf"Add of x, {half} would mix torch\.float16, torch\.float32; cast first"):
        graph.node("Add", ["x", half])
    with pytest.raises(TypeError, match=r"MatMul of x, constant_0 would mix torch\.bfloat16, torch\.float32"):
        graph.node("MatMul", ["x", torch.ones(2, 2, dtype=torch.bfloat16)])


def test_sizes_and_scales_are_no_mixture():
    graph = graph_of("x")
    rows = graph.node("Reshape", [graph.cast("x", torch.float16), [1, 1, -1, 4]])
    larger = graph.node("Resize", [rows, "", torch.tensor([1.0, 1.0, 2.0, 2.0])], mode="nearest")
    assert graph.type_of(rows) == graph.type_of(larger) == torch.float16
    finished(graph, larger, rank=4)


def test_a_sum_has_the_type_of_what_is_added_to():
    graph = graph_of("x")
    half = graph.cast("x", torch.float16)
    assert graph.type_of(graph.add(half, "x")) == torch.float32
    assert graph.type_of(graph.add("x", half)) == torch.float16
    assert graph.type_of(graph.add(half, half)) == torch.float16


CONSTANTS = {
    "scalar": lambda bits: bits[0, 0],
    "one": lambda bits: bits[:1, 0],
    "matrix": lambda bits: bits,
    "transposed": lambda bits: bits.t(),
    "strided": lambda bits: bits[::2, 1::3],
    "expanded": lambda bits: bits[:, :1].expand(-1, 5),
    "channels-last": lambda bits: bits[:12].view(2, 3, 2, -1).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", CONSTANTS)
@pytest.mark.parametrize("dtype", ELEMENT_TYPES, ids=str)
def test_constants_keep_every_byte(dtype, layout):
    """NaN, infinities and subnormal numbers too: the bits are random."""
    bits = torch.randint(0, 256, (16, 24 * dtype.itemsize), dtype=torch.uint8).view(dtype)
    value = CONSTANTS[layout](bits)
    graph = TypedGraph()
    name = graph.constant(value)
    assert graph.type_of(name) == dtype
    (stored,) = graph.model({}, {}).graph.initializer
    assert (stored.name, stored.data_type, tuple(stored.dims)) == (name, ELEMENT_TYPES[dtype], tuple(value.shape))
    row_major = torch.empty(value.shape, dtype=dtype).copy_(value)
    assert stored.raw_data == row_major.reshape(-1).view(torch.uint8).numpy().tobytes()
    if dtype in (torch.float32, torch.float16, torch.int8, torch.int64):  # NumPy's own: read as any runtime would
        assert onnx.numpy_helper.to_array(stored).tobytes() == row_major.numpy().tobytes()


def test_lists_are_int64():
    graph = TypedGraph()
    assert graph.type_of(graph.constant([0, -1, 2**31 - 1])) == torch.int64
    (stored,) = graph.model({}, {}).graph.initializer
    assert onnx.numpy_helper.to_array(stored).tolist() == [0, -1, 2**31 - 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e5m2], ids=str)
def test_types_that_engines_lack(dtype):
    graph = graph_of("x")
    with pytest.raises(TypeError, match=rf"engines take no {dtype}; give the model in one of torch\.bfloat16"):
        graph.constant(torch.zeros(2).to(dtype))
    with pytest.raises(TypeError, match=f"engines take no {dtype}"):
        graph.cast("x", dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("where", ["constant", "cast"])
def test_bfloat16_alone_needs_the_newer_opset(dtype, where):
    graph = graph_of("x")
    value = graph.cast("x", dtype)
    if where == "constant":
        value = graph.node("Add", [value, torch.ones(1, dtype=dtype)])
    proto = finished(graph, value)
    version = OPSET_BF16 if dtype == torch.bfloat16 else OPSET
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", version)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_parts_have_the_value_s_type(dtype):
    graph = graph_of("x")
    parts = graph.split(graph.cast("x", dtype), 3, axis=1)
    assert len(set(parts)) == 3
    assert {graph.type_of(part) for part in parts} == {dtype}
    proto = finished(graph, graph.node("Concat", parts[::-1], axis=1))
    x = torch.arange(12.0).view(2, 6)
    assert torch.equal(run(proto, x=x), torch.cat(x.chunk(3, dim=1)[::-1], dim=1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_shapes_are_integers_whatever_the_type(dtype):
    graph = graph_of("x")
    value = graph.cast("x", dtype)
    sizes = graph.shape(value, start=1)
    assert graph.type_of(sizes) == torch.int64
    assert graph.type_of(graph.node("Mod", [graph.node("Neg", [sizes]), [4]])) == torch.int64
    proto = finished(graph, graph.cast(graph.shape(value), torch.float32), rank=1)
    (asked, _), types = nodes(proto, "Shape"), {v.name: v.type for v in proto.graph.value_info}
    assert [(attribute.name, attribute.i) for attribute in asked.attribute] == [("start", 1)]
    assert not types  # nothing is said about types that inference would not find


def test_without_quantization_nothing_is_in_8_bits():
    graph = graph_of("x")
    assert graph.quantized("x", None, torch.int8) == "x"
    assert graph.type_of(graph.weight(torch.ones(3, 2), None)) == torch.float32
    assert [node.op_type for node in finished(graph, "x").graph.node] == ["Identity"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_users_of_a_value_share_its_pair(precision, dtype):
    """Users at one scale; another scale is another pair."""
    graph = graph_of("x", "z")
    x, z = graph.cast("x", dtype), graph.cast("z", dtype)
    scale, other, stored = torch.tensor(0.5, dtype=dtype), torch.tensor(0.25, dtype=dtype), FORMATS[precision]
    read = graph.quantized(x, scale, stored)
    finer = graph.quantized(x, other, stored)
    assert read == graph.quantized(x, scale.clone(), stored)
    assert len({x, read, finer, graph.quantized(z, scale, stored)}) == 4
    assert graph.cast(x, dtype) == x
    assert graph.type_of(read) == dtype
    total = graph.node("Add", [read, finer])
    proto = finished(graph, graph.node("Add", [total, graph.quantized(z, scale, stored)]), inputs=("x", "z"))
    assert len(nodes(proto, "QuantizeLinear")) == len(nodes(proto, "DequantizeLinear")) == 3


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_weight_in_8_bits_has_its_own_type_again(precision):
    numbers, scale = Quantization(precision, {}).weight(torch.randn(4, 3, dtype=torch.float16), axis=1)
    graph = graph_of("x")
    weight = graph.weight(numbers, scale, axis=1)
    assert graph.type_of(weight) == torch.float16
    proto = finished(graph, graph.node("MatMul", [graph.cast("x", torch.float16), weight]))
    (dequantize,) = nodes(proto, "DequantizeLinear")
    assert [(attribute.name, attribute.i) for attribute in dequantize.attribute] == [("axis", 1)]
    stored, scale, zeros = (next(v for v in proto.graph.initializer if v.name == name) for name in dequantize.input)
    assert (tuple(stored.dims), tuple(scale.dims), tuple(zeros.dims)) == ((4, 3), (3,), (3,))
    assert stored.data_type == zeros.data_type == ELEMENT_TYPES[FORMATS[precision]]
    assert scale.data_type == ELEMENT_TYPES[torch.float16]
    assert not any(zeros.raw_data)
