"""The network in 8 bits as data: it computes what the lowered network does, and as bytes is read or refused."""

import json
import struct

import pytest
import safetensors.torch
import torch
from bundle_samples import images
from torch import Tensor

import conformer_fast as cf
from conformer_fast.engines.native.graph import GRAPH, IMAGES, PERMUTE, SIGNATURES, Graph, Stored, Value
from conformer_fast.errors import BundleError
from conformer_fast.inference.lower import lower
from conformer_fast.model import functional as CF
from conformer_fast.model.outputs import names_of

OUTPUTS = {
    "scores": ("conv_logits", "trans_logits"),
    "sum": ("logits",),
    "maps": ("1.map", "2.map", "3.map", "3.tokens"),
    "pooled": ("3.pooled", "3.class_token", "logits"),
    "inside": ("2.fcu_down", "2.fcu_up", "3.fcu_up"),
}


pytestmark = pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")  # of so few images


@pytest.fixture
def network(small_model):
    """Makes the lowered network of these outputs."""
    quantization = cf.calibrate(small_model, [images(8, 3, 32, 32)], precision="int8")
    return lambda outputs: lower(small_model, outputs, quantization=quantization, attended=True)


def run(graph: Graph, batch: Tensor) -> tuple[Tensor, ...]:
    """The graph by functional.py."""
    found = {IMAGES: batch}
    for index, (operation, arguments) in enumerate(graph.nodes):
        given = {
            name: graph.tensors[value.name]
            if isinstance(value, Stored)
            else found.get(value, value)
            if isinstance(value, Value)
            else value
            for name, value in arguments.items()
        }
        result = (torch.permute if operation == PERMUTE else getattr(CF, operation))(**given)
        results = result if isinstance(result, tuple) else (result,)
        found |= {Value(index, output): value for output, value in enumerate(results)}
    return tuple(found[output] for output in graph.outputs)


@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (1, 3, 48, 80)], ids=str)
def test_it_computes_what_the_network_does(network, outputs, shape):
    lowered, batch = network(outputs), images(*shape)
    graph = Graph.of(lowered)
    for each in (graph, Graph.from_bytes(graph.to_bytes())):
        for ours, theirs in zip(run(each, batch), lowered(batch), strict=True):
            assert torch.equal(ours, theirs)


def test_every_output_there_is(network, small_model):
    names = names_of(small_model)
    assert len(run(Graph.of(network(names)), images(1, 3, 32, 32))) == len(names)


@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
def test_as_bytes_it_is_the_same(network, outputs):
    graph = Graph.of(network(outputs))
    content = graph.to_bytes()
    other = Graph.from_bytes(content)
    assert (other.nodes, other.outputs) == (graph.nodes, graph.outputs)
    assert other.tensors.keys() == graph.tensors.keys()
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in graph.tensors.items())
    assert other.to_bytes() == content
    assert {tensor.dtype for tensor in other.tensors.values()} == {torch.int8, torch.float32}


def test_all_arguments_are_there_by_name(network):
    graph = Graph.of(network(OUTPUTS["maps"]))
    assert graph.nodes[-1] == (PERMUTE, {"input": graph.nodes[-1].arguments["input"], "dims": [0, 3, 1, 2]})
    for operation, arguments in graph.nodes:
        assert arguments.keys() == SIGNATURES[operation].arguments.keys()
    stem = graph.nodes[0].arguments
    assert (stem["images"], stem["weight"], stem["multiple"]) == (IMAGES, Stored("stem.weight"), 4)
    assert (stem["out_scale"], stem["out_dtype"]) == (Stored("conv_1.conv1.input_scale"), torch.int8)


def test_what_no_output_needs_is_left_out(network):
    graph = Graph.of(network(("1.map",)))
    assert {operation for operation, _ in graph.nodes} == {"stem", "conv1x1", "conv3x3", "permute"}
    assert {name.split(".")[0] for name in graph.tensors} == {"stem", "conv_1"}


def test_a_product_may_stay_in_fp32(small_model):
    found = cf.calibrate(small_model, [images(8, 3, 32, 32)], precision="int8")
    ranges = {name: value for name, value in found.ranges.items() if name not in ("stem", "trans_1.fc1")}
    lowered = lower(small_model, quantization=cf.Quantization("int8", ranges), attended=True)
    graph, batch = Graph.of(lowered), images(2, 3, 32, 32)
    assert graph.nodes[0].arguments["weight_scale"] is None
    again = Graph.from_bytes(graph.to_bytes())
    for ours, theirs in zip(run(again, batch), lowered(batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # sums of fp32 in another order


# Damaged files


def node_of(graph, operation):
    return next(arguments for name, arguments in graph["nodes"] if name == operation)


def changed(graph, operation, **arguments):
    node_of(graph, operation).update(arguments)


WRONG = {
    "an unknown operation": (lambda graph: graph["nodes"].append(["eval", {}]), "'eval', which is no operation"),
    "a detector's operation": (lambda graph: graph["nodes"].append(["unfolded", {}]), "'unfolded', which is no operat"),
    "no operation's name": (lambda graph: graph["nodes"].append([["stem"], {}]), "unhashable"),
    "no node": (lambda graph: graph["nodes"].append(3), "unpack"),
    "an unknown argument": (lambda graph: changed(graph, "stem", groups=2), "too many or too few: groups"),
    "a missing argument": (lambda graph: node_of(graph, "stem").pop("bias"), "too many or too few: bias"),
    "no arguments": (lambda graph: graph["nodes"].append(["stem", None]), "items"),
    "a later node": (lambda graph: changed(graph, "linear", x={"value": [99, 0]}), "none before returns it"),
    "itself": (lambda graph: changed(graph, "conv3x3", feature_map={"value": [2, 0]}), "none before returns it"),
    "a node before all": (lambda graph: changed(graph, "linear", x={"value": [-2, 0]}), "none before returns it"),
    "another result": (lambda graph: changed(graph, "conv1x1", feature_map={"value": [0, 1]}), "none before returns"),
    "half a node": (lambda graph: changed(graph, "conv1x1", feature_map={"value": [0.0, 0]}), "none before returns"),
    "half a reference": (lambda graph: changed(graph, "conv1x1", feature_map={"value": [0]}), "missing 1 required"),
    "images inside": (lambda graph: changed(graph, "linear", x={"value": [-1, 0]}), "cannot have the x"),
    "a stem of no images": (lambda graph: changed(graph, "stem", images={"value": [0, 0]}), "cannot have the images"),
    "computed weights": (lambda graph: changed(graph, "linear", weight={"value": [0, 0]}), "cannot have the weight"),
    "a stored input": (lambda graph: changed(graph, "linear", x={"stored": "stem.bias"}), "cannot have the x"),
    "no input": (lambda graph: changed(graph, "linear", x=None), "cannot have the x"),
    "a missing tensor": (lambda graph: changed(graph, "stem", bias={"stored": "none.bias"}), "none.bias, stem.bias"),
    "a tensor without a name": (lambda graph: changed(graph, "stem", bias={"stored": 3}), "is no argument"),
    "another dtype": (lambda graph: changed(graph, "stem", out_dtype={"dtype": "float32"}), "is no argument"),
    "another object": (lambda graph: changed(graph, "stem", out_dtype={"a": 1, "b": 2}), "too many values"),
    "a text": (lambda graph: changed(graph, "stem", multiple="4"), "cannot have the multiple '4'"),
    "a number for a truth": (lambda graph: changed(graph, "conv1x1", relu=1), "cannot have the relu 1"),
    "a truth for a number": (lambda graph: changed(graph, "conv1x1", stride=True), "cannot have the stride True"),
    "no stride": (lambda graph: changed(graph, "conv1x1", stride=0), "cannot have the stride 0"),
    "an endless stride": (lambda graph: changed(graph, "conv1x1", stride=2**31), "cannot have the stride 21474"),
    "no number": (lambda graph: changed(graph, "linear_norm", norm_eps=float("nan")), "cannot have the norm_eps nan"),
    "infinity": (lambda graph: changed(graph, "attention", scale=float("inf")), "cannot have the scale inf"),
    "another order": (lambda graph: changed(graph, "permute", dims=[0, 1, 2, 3]), r"cannot have the dims \[0, 1, 2, 3"),
    "no outputs": (lambda graph: graph["outputs"].clear(), "it returns nothing"),
    "its images": (lambda graph: graph["outputs"].append([-1, 0]), "or the images"),
    "an output of nothing": (lambda graph: graph["outputs"].append([99, 0]), "none before returns it"),
    "outputs of nothing": (lambda graph: graph.pop("outputs"), "outputs"),
    "a deep one": (lambda graph: graph["nodes"].append(["stem", {"images": {"value": [[[[]]]]}}]), "missing"),
}


def rewritten(content: bytes, change) -> bytes:
    """The file with another graph in its metadata."""
    tensors = safetensors.torch.load(content)
    (length,) = struct.unpack("<Q", content[:8])
    graph = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][GRAPH])
    change(graph)
    return safetensors.torch.save(tensors, {GRAPH: json.dumps(graph)})


@pytest.fixture
def content(network) -> bytes:
    return Graph.of(network(("2.map", "logits"))).to_bytes()


def refused(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=rf"\Athe file is no network in 8 bits: [^\n]*{message}[^\n]*\Z"):
        Graph.from_bytes(content)


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_graph_is_refused(content, change, message):
    Graph.from_bytes(rewritten(content, lambda graph: None))
    refused(rewritten(content, change), message)


def test_wrong_tensors_are_refused(content):
    graph = Graph.from_bytes(content)
    for name, tensor, message in (
        ("stem.bias", graph.tensors["stem.bias"].half(), r"tensor stem.bias is torch.float16"),
        ("more", torch.zeros(1), "other tensors than it reads: more"),
    ):
        refused(Graph(graph.nodes, graph.outputs, {**graph.tensors, name: tensor}).to_bytes(), message)
    fewer = {name: tensor for name, tensor in graph.tensors.items() if name != "stem.bias"}
    refused(Graph(graph.nodes, graph.outputs, fewer).to_bytes(), "stem.bias")


def test_other_files_are_refused(content):
    for other in (b"", b"x" * 100, content[:-1], content[:50], content + b"x"):
        refused(other, "")
    tensors = safetensors.torch.load(content)
    refused(safetensors.torch.save(tensors), "__metadata__")
    refused(safetensors.torch.save(tensors, {"other": "{}"}), GRAPH)
    for text in ("", "[]", "3", "{}", "[" * 100_000):
        refused(safetensors.torch.save(tensors, {GRAPH: text}), "")
