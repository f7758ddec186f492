"""One ONNX export computes what the reference does, for any batch and any size, in standard operators, in each type."""

import copy
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import goldens
import lookalikes
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.onnx.typed_graph import OPSET
from conformer_fast.engines.openvino.runtime import core
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.distance import ALLOWANCE, FLOOR, relative_error
from conformer_fast.model.outputs import LOGITS, observed_outputs
from conformer_fast.model.precision import DTYPES
from conformer_fast.model.reference import Conformer

SIZES = [(1, 64, 96), (3, 64, 96), (3, 50, 70), (1, 49, 97), (2, 51, 48)]  # whole patches, then padded ones


class Exported(NamedTuple):
    """A reference model, one ONNX export of it and that export loaded in ONNX Runtime."""

    reference: Conformer
    fused: InferenceConformer
    proto: onnx.ModelProto
    session: onnxruntime.InferenceSession
    products: str
    precision: str


def export(reference: Conformer, outputs=None, products="matmul", precision="fp32") -> Exported:
    fused = lower(reference)
    fused = fused.with_outputs(outputs or fused.output_names)
    proto = onnx_from_model(fused.in_precision(DTYPES[precision]), products)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sessions of a test process should not fight for the cores
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Exported(reference, fused, proto, session, products, precision)


def exact_outputs(reference: Conformer, images: torch.Tensor, names) -> tuple[torch.Tensor, ...]:
    """In float64."""
    with torch.no_grad():
        return observed_outputs(copy.deepcopy(reference).double(), images.double(), names)


def assert_agrees(exported: Exported, images: torch.Tensor) -> dict[str, float]:
    """Each output errs, against `exact_outputs`, as verify() allows: twice PyTorch's own error in this precision and a
    rounding step. Returns the errors."""
    names, reference, precision = exported.fused.outputs, exported.reference, exported.precision
    dtype = DTYPES[precision]
    with torch.no_grad():
        eager = observed_outputs(reference.to(dtype), images.to(dtype), names)
        reference.float()
    exact = exact_outputs(reference, images, names)
    errors = {}
    for name, value, ours, true in zip(
        names, exported.session.run(names, {"images": images.numpy()}), eager, exact, strict=True
    ):
        assert value.shape == true.shape, name
        bound = ALLOWANCE * relative_error(ours, true) + FLOOR[precision]
        errors[name] = relative_error(torch.from_numpy(value), true)
        assert errors[name] <= bound, name
    return errors


CONFIGS = {
    "small": {},
    "deep": {"depth": 6},
    "patch-32": {"patch_size": 32},
    "patch-48-one-head": {"patch_size": 48, "num_heads": 1},
    "gray-head-32-ratio-3": {"in_channels": 1, "embed_dim": 96, "num_heads": 3, "channel_ratio": 3},
}

PRODUCTS = ("matmul", "conv")


@pytest.fixture(scope="module")
def small(small_config):
    return export(lookalikes.fill(Conformer(small_config)).eval())


@pytest.fixture(scope="module", params=[(name, products) for name in CONFIGS for products in PRODUCTS], ids="-".join)
def custom(request, small_config):
    name, products = request.param
    model = lookalikes.fill(Conformer(replace(small_config, **CONFIGS[name]))).eval()
    return export(model, products=products)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "precision"), [("tiny-p16", "fp32"), *((variant, "fp16") for variant in VARIANTS)])
def test_every_variant(variant, precision, record_property):
    exported = export(lookalikes.fill(Conformer(VARIANTS[variant])).eval(), precision=precision, outputs=LOGITS)
    onnx.checker.check_model(exported.proto, full_check=True)
    for name, error in assert_agrees(exported, goldens.image(3, 50, 70)).items():
        where = f"{variant} {precision}"
        record_property("table", ("error of the exported graph in ONNX Runtime", where, name, error))


@pytest.fixture(scope="module")
def tiny():
    model = lookalikes.fill(Conformer(goldens.build("tiny-p16", torch.float32).config)).eval()
    return export(model, ["conv_logits", "trans_logits"])


def test_one_export_runs_at_every_size(custom):
    channels = custom.reference.config.in_channels
    for B, H, W in SIZES:
        assert_agrees(custom, torch.randn(B, channels, H, W, generator=torch.Generator().manual_seed(H)))


def test_a_published_variant(tiny):
    assert_agrees(tiny, goldens.image(1, 64, 80))
    assert_agrees(tiny, goldens.image(2, 50, 70))


def test_recorded_logits(tiny):
    for case in goldens.cases("official_logits", "mmpretrain_padded_logits"):
        if case.variant == "tiny-p16":
            images = case.images(torch.float32).numpy()
            conv, trans = map(torch.from_numpy, tiny.session.run(None, {"images": images}))
            assert goldens.error(conv, case.recorded["conv"]) < goldens.TOLERANCE[torch.float32]
            assert goldens.error(trans, case.recorded["trans"]) < goldens.TOLERANCE[torch.float32]


def test_features_only(small_config):
    exported = export(lookalikes.fill(Conformer(small_config, features_only=True)).eval())
    for size in SIZES[1:3]:
        assert_agrees(exported, goldens.image(*size))


def test_checker_accepts_it(custom, tiny):
    for exported in (custom, tiny):
        onnx.checker.check_model(exported.proto, full_check=True)


def test_operators_are_standard_and_whole(custom):
    proto, depth = custom.proto, custom.reference.config.depth
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", OPSET)]
    assert {node.domain for node in proto.graph.node} == {""}
    count = Counter(node.op_type for node in proto.graph.node)
    coupled = depth - 1
    assert count["Gelu"] == depth + coupled  # MLPs, and FCU-down
    assert count["LayerNormalization"] == 2 * depth + coupled + depth + 1  # ... a class token each, and the heads
    assert count["Softmax"] == depth
    projections = 4 * depth + coupled  # of the transformer blocks, and FCU-up's
    assert count["MatMul"] == 2 * depth + (projections if custom.products == "matmul" else 0)  # attention has two
    assert not count.keys() & {"Erf", "Tanh", "Sqrt", "Pow", "BatchNormalization", "InstanceNormalization"}


def test_values_and_nodes_have_unique_names(custom):
    graph = custom.proto.graph
    values = [value for node in graph.node for value in node.output] + [value.name for value in graph.initializer]
    for names in (values, [node.name for node in graph.node]):
        assert len(set(names)) == len(names)
        assert all(names)


def test_inputs_and_outputs_are_named_and_free_in_size(custom):
    def dimensions(value):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

    graph, channels = custom.proto.graph, custom.reference.config.in_channels
    assert [value.name for value in graph.input] == ["images"]
    assert dimensions(graph.input[0]) == ["batch", channels, "height", "width"]
    assert tuple(value.name for value in graph.output) == custom.fused.outputs
    for value in graph.output:
        kind = value.name.partition(".")[2]
        rank = {"map": 4, "tokens": 3, "fcu_down": 3, "fcu_up": 3}.get(kind, 2)
        first, *others = dimensions(value)
        assert first == "batch"
        assert len(others) == rank - 1


PRECISIONS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return known | {value.name: value.data_type for value in inferred.initializer}


@pytest.mark.parametrize(("precision", "product_type"), PRECISIONS.items())
def test_products_are_in_the_precision_and_all_else_in_fp32(small_model, precision, product_type):
    fused = lower(small_model)
    proto = onnx_from_model(fused.in_precision(DTYPES[precision]))
    onnx.checker.check_model(proto, full_check=True)
    assert {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)} == {
        TensorProto.FLOAT
    }
    types = element_types(proto)
    found = {}
    for node in proto.graph.node:
        found.setdefault(node.op_type, set()).add(types[node.output[0]])
    for op in ("Conv", "MatMul", "Relu", "MaxPool", "AveragePool", "Resize"):
        assert found[op] == {product_type}, op
    for op in ("LayerNormalization", "Softmax", "Gemm", "ReduceMean"):
        assert found[op] == {TensorProto.FLOAT}, op
    weights = [value for value in proto.graph.initializer if value.data_type == product_type]
    assert sum(len(value.raw_data) for value in weights) > 0.9 * sum(len(v.raw_data) for v in proto.graph.initializer)
    assert ("Cast" in found) == (precision != "fp32")


def test_the_residual_of_tokens_is_fp32_throughout(small_model):
    """The class token doubles in each coupled block, and its residual must not be rounded each time."""
    fused = lower(small_model)
    names = [name for name in fused.output_names if name.endswith((".tokens", ".fcu_down"))]
    proto = onnx_from_model(fused.with_outputs(names).in_precision(torch.float16))
    producers = {node.output[0]: node for node in proto.graph.node}
    for name in names:  # an output behind a cast would show that the value itself was rounded
        assert producers[name].op_type == "Identity"
        assert producers[producers[name].input[0]].op_type == "Add", name


@pytest.mark.parametrize("products", PRODUCTS)
def test_half_precision_at_every_size(small_config, products):
    model = lookalikes.fill(Conformer(small_config)).eval()
    exported = export(model, products=products, precision="fp16")
    for size in SIZES:
        assert_agrees(exported, goldens.image(*size))


def test_bfloat16_computes_what_the_operators_do(small_model):
    """ONNX Runtime has no bfloat16 on the CPU; OpenVINO has, and is told not to use another precision."""
    fused = lower(small_model)
    images = goldens.image(2, 50, 70)
    read = core().read_model(onnx_from_model(fused.in_precision(torch.bfloat16)).SerializeToString())
    compiled = core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        exact = lower(small_model.double())(images.double())
        eager = fused.in_precision(torch.bfloat16)(images)
    for port, (ours, true) in enumerate(zip(eager, exact, strict=True)):
        value = torch.from_numpy(compiled(images.numpy())[port])
        assert relative_error(value, true) <= ALLOWANCE * relative_error(ours, true) + FLOOR["bf16"]


def test_a_type_that_engines_lack(small_model):
    with pytest.raises(TypeError, match=r"engines take no torch\.float64"):
        onnx_from_model(lower(small_model.double()))


@pytest.mark.parametrize(
    "outputs",
    [["trans_logits"], ["trans_logits", "conv_logits"], ["3.tokens", "1.map"], ["2.fcu_up"], ["1.pooled"]],
    ids=str,
)
def test_any_outputs_in_any_order(small, outputs):
    exported = export(small.reference, outputs)
    assert [value.name for value in exported.proto.graph.output] == outputs
    onnx.checker.check_model(exported.proto, full_check=True)
    assert_agrees(exported, goldens.image(2, 50, 70))


def test_exports_are_reproducible(small):
    again = onnx_from_model(lower(small.reference).with_outputs(small.fused.outputs))
    assert again.SerializeToString(deterministic=True) == small.proto.SerializeToString(deterministic=True)


def test_the_model_is_untouched(small_model):
    fused = lower(small_model)
    before = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    onnx_from_model(fused)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())
    assert isinstance(fused, InferenceConformer)
    assert len(fused(goldens.image(1, 32, 32))) == 2


def test_openvino_reads_it(small):
    read = core().read_model(small.proto.SerializeToString())
    assert tuple(output.any_name for output in read.outputs) == small.fused.outputs
    assert str(read.input(0).partial_shape) == "[?,3,?,?]"


def test_only_what_an_output_needs_is_written(small_model):
    model = lower(small_model)
    everything, first_map = onnx_from_model(model), onnx_from_model(model.with_outputs(["1.map"]))
    assert first_map.ByteSize() < everything.ByteSize() / 10
    onnx.checker.check_model(first_map, full_check=True)
