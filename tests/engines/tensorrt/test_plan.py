"""The builder's engines, and graphs it refuses: real ones, by TensorRT-RTX, which needs no GPU."""

import sys
import threading
from importlib import import_module

import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper
from plan_samples import DYNAMIC, FIXED, quantized_graph

from conformer_fast.engines.tensorrt import plan as builder_module
from conformer_fast.engines.tensorrt.flavors import Flavor, Log
from conformer_fast.engines.tensorrt.plan import engine_from_onnx
from conformer_fast.errors import EngineError

pytestmark = pytest.mark.usefixtures("gpu")


def is_a_plan(flavor: Flavor, plan: bytes) -> bool:
    """As far as TensorRT-RTX can tell without a GPU, from the header."""
    log = Log(flavor)
    diagnostics = flavor.module.Runtime(log.logger).get_engine_validity(plan)[1]
    return not diagnostics & int(flavor.module.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


TARGETS = {"one": ["sm86"], "capitals": ["SM120"], "several": ["sm80", "sm86", "sm89", "sm120"]}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_builds_without_a_gpu(targets, graph, rtx, capfd):
    plan = engine_from_onnx(graph, [FIXED], rtx, targets, "fp32")
    assert capfd.readouterr() == ("", "")
    assert type(plan) is bytes
    assert len(plan) > len(graph)  # the weights are inside
    assert is_a_plan(rtx, plan)
    assert not is_a_plan(rtx, graph)


def test_builds_for_dynamic_shapes_and_several_profiles(graph, rtx):
    one = engine_from_onnx(graph, [DYNAMIC], rtx, ["sm86"], "fp32")
    two = engine_from_onnx(graph, [DYNAMIC, FIXED], rtx, ["sm86"], "fp32")
    assert is_a_plan(rtx, two)
    assert len(two) > len(one)


@pytest.mark.parametrize(("dtype", "precision"), [(TensorProto.INT8, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")])
def test_builds_quantized_graphs(dtype, precision, rtx):
    plan = engine_from_onnx(quantized_graph(dtype), [DYNAMIC], rtx, ["sm89", "sm120"], precision)
    assert is_a_plan(rtx, plan)


def test_repeated_targets_count_once(rtx):
    sizes = {
        len(engine_from_onnx(quantized_graph(TensorProto.INT8), [FIXED], rtx, targets, "int8"))
        for targets in (["sm86"], ["sm86", "SM86", "sm86"])
    }
    assert len(sizes) == 1


def test_builds_in_a_thread(graph, rtx):
    plans = []
    thread = threading.Thread(target=lambda: plans.append(engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")))
    thread.start()
    thread.join(60)
    assert is_a_plan(rtx, plans[0])


def altered(graph: bytes, change) -> bytes:
    model = onnx.load_model_from_string(graph)
    change(model.graph.node)
    return model.SerializeToString()


def rename_an_operator(nodes) -> None:
    nodes[10].op_type = "NoSuchOperator"


def cut_a_wire(nodes) -> None:
    nodes[20].input[0] = "nowhere"


BROKEN = {
    "unknown operator": (lambda graph: altered(graph, rename_an_operator), "node 10 .*NoSuchOperator"),
    "input from nowhere": (lambda graph: altered(graph, cut_a_wire), "node 20 .*Node input was not registered"),
    "truncated": (lambda graph: graph[: len(graph) // 2], "Failed to parse the ONNX model"),
    "garbage": (lambda graph: b"garbage" * 100, "Failed to parse the ONNX model"),
    "empty": (lambda graph: b"", "must have one input, it has 0"),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_graph_is_refused_with_the_reason(damage, reason, graph, rtx):
    with pytest.raises(EngineError, match=rf"^TensorRT-RTX .* built no engine: .*{reason}"):
        engine_from_onnx(damage(graph), [FIXED], rtx, ["sm86"], "fp32")


def test_what_the_build_itself_refuses_comes_with_the_log(rtx):
    with pytest.raises(EngineError, match=r"(?s)the build failed; the log .*\[ERROR\].*sm86.*fp8_e4m3"):
        engine_from_onnx(quantized_graph(TensorProto.FLOAT8E4M3FN), [FIXED], rtx, ["sm86", "sm89"], "int8")


def test_graph_with_two_inputs_is_refused(graph, rtx):
    model = onnx.load_model_from_string(graph)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(EngineError, match="must have one input, it has 2"):
        engine_from_onnx(model.SerializeToString(), [FIXED], rtx, ["sm86"], "fp32")


def test_a_build_without_profiles_is_refused(graph, rtx):
    with pytest.raises(ValueError, match="needs the shapes"):
        engine_from_onnx(graph, [], rtx, ["sm86"], "fp32")


def test_nothing_of_tensorrt_is_needed_to_import_the_builder():
    assert import_module("conformer_fast.engines.tensorrt.plan") is builder_module
    assert "tensorrt" not in sys.modules
