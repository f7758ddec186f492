"""export(): the graph that engines are built from, as a file."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf
from conformer_fast.deploy import export as export_module
from conformer_fast.model.outputs import LOGITS

onnx = pytest.importorskip("onnx")


def outputs_of(path) -> list[str]:
    return [output.name for output in onnx.load(path).graph.output]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_it_is_the_typed_graph(small_model, precision, tmp_path):
    path = cf.export(small_model, tmp_path / "a.onnx", precision=precision)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert outputs_of(path) == list(LOGITS)
    types = {tensor.data_type for tensor in proto.graph.initializer} - {onnx.TensorProto.INT64}
    low = {"fp32": set(), "fp16": {onnx.TensorProto.FLOAT16}, "bf16": {onnx.TensorProto.BFLOAT16}}[precision]
    assert types == {onnx.TensorProto.FLOAT, *low}


def test_any_model_that_compile_takes_and_other_outputs(tmp_path):
    path = cf.export(cf.create_model("digits").state_dict(), tmp_path / "a.onnx", outputs=["logits", "2.map"])
    assert outputs_of(path) == ["logits", "2.map"]


def test_a_file_is_replaced(small_model, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    assert cf.export(small_model, str(path)) == path
    assert outputs_of(path) == list(LOGITS)


@pytest.mark.parametrize("given", ["images", "quantization"])
def test_8_bits(small_model, tmp_path, given):
    images = [torch.randn(2, 3, 32, 32)]
    known = cf.calibrate(small_model, images)
    quantization = images if given == "images" else known
    path = cf.export(small_model, tmp_path / "a.onnx", precision="int8", quantization=quantization)
    stored = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    assert len(stored) > len(known.ranges)  # of what products read, and of their weights


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp64"}, ValueError, "unknown precision 'fp64'"),
        ({"outputs": "logits"}, TypeError, r"outputs must be a list, such as \['logits'\]"),
        ({"outputs": ["scores"]}, ValueError, "no such outputs"),
        ({"outputs": []}, ValueError, "one or more different names"),
        ({"precision": "int8"}, ValueError, "takes its ranges from images"),
        ({"quantization": cf.Quantization("int8", {})}, ValueError, "is for int8 and fp8"),
    ],
    ids=str,
)
def test_what_cannot_be_leaves_no_file(small_model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        cf.export(small_model, tmp_path / "a.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_costs_no_work(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "adopt", lambda model: pytest.fail("worked first"))
    with pytest.raises(FileNotFoundError, match="none does not exist; create it first"):
        cf.export(small_model, tmp_path / "none" / "a.onnx")


@pytest.mark.parametrize("kind", ["text", "path", "link"])
def test_a_model_is_not_written_over(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "adopt", lambda model: pytest.fail("worked first"))
    model, link = tmp_path / "model.pth", tmp_path / "link.pth"
    model.write_bytes(b"precious")
    link.symlink_to(model)
    with pytest.raises(cf.ArgumentError, match=f"is the file {model}, which is read and would be lost"):
        cf.export(str(model) if kind == "text" else model, link if kind == "link" else model)
    assert model.read_bytes() == b"precious"
