"""A bundle as a model of NVIDIA Triton Inference Server: the folder, the configuration's text, and what is refused."""

import re
from functools import partial
from importlib.util import find_spec

import bundle_samples
import lookalikes
import pytest
import torch
from bundle_samples import PLAN

import conformer_fast as cf
from conformer_fast.engines.onnx.graph import typed_graph
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.errors import BundleError
from conformer_fast.inference.lower import lower
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes

SMALL = Shapes(batch=(1, 2, 4), height=(32, 32, 64), width=(32, 32, 64))
FIXED = Shapes(batch=(1, 8, 32))
write_plan = partial(bundle_samples.write_plan, shapes=FIXED)


def configuration(tmp_path, model, **options) -> str:
    bundle = write_plan(tmp_path / "bundle", model, **options)
    return (cf.export_server(bundle, tmp_path / "models", name="conformer") / "config.pbtxt").read_text()


def dims(text: str) -> dict[str, list[int]]:
    """The dimensions of each tensor in a configuration."""
    found = re.findall(r'\{ name: "([^"]+)", data_type: TYPE_FP32, dims: \[([-\d, ]+)\]', text)
    return {name: [int(size) for size in sizes.split(",")] for name, sizes in found}


def test_the_folder_is_what_the_server_wants(small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model)
    folder = cf.export_server(bundle, tmp_path / "all" / "models", name="conformer-7.fp16", instances=2)
    assert folder == tmp_path / "all" / "models" / "conformer-7.fp16"
    assert (folder / "1" / "model.plan").read_bytes() == PLAN
    assert (folder / "labels.txt").read_bytes() == (bundle / "labels.txt").read_bytes()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"1/model.plan", "config.pbtxt", "labels.txt"}
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.stat().st_mode & 0o500 for path in (folder, folder / "1")} == {0o500}
    assert folder.stat().st_mode & 0o777 == 0o755  # the server may be another user
    assert (folder / "config.pbtxt").read_text() == (
        """\
name: "conformer-7.fp16"
platform: "tensorrt_plan"
max_batch_size: 32
input [
  { name: "images", data_type: TYPE_FP32, dims: [3, 224, 224] }
]
output [
  { name: "conv_logits", data_type: TYPE_FP32, dims: [7], label_filename: "labels.txt" },
  { name: "trans_logits", data_type: TYPE_FP32, dims: [7], label_filename: "labels.txt" }
]
dynamic_batching {
  preferred_batch_size: [8]
  max_queue_delay_microseconds: 500
}
instance_group [
  { kind: KIND_GPU, count: 2, profile: [ "0" ] }
]
"""
    )


def test_several_shapes(small_model, tmp_path):
    """The server takes, for each batch, the profile that fits it best."""
    text = configuration(tmp_path, small_model, shapes=[Shapes((1, 1, 1)), Shapes((2, 16, 64)), Shapes((1, 1, 8))])
    assert "max_batch_size: 64\n" in text
    assert "preferred_batch_size: [1, 16]\n" in text
    assert 'profile: [ "0", "1", "2" ]' in text
    assert dims(text)["images"] == [3, 224, 224]


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([SMALL], [3, -1, -1]),
        ([Shapes(width=(224, 224, 448))], [3, 224, -1]),
        ([Shapes(height=(64,) * 3), Shapes(height=(96,) * 3)], [3, -1, 224]),
    ],
    ids=["any", "wide", "two heights"],
)
def test_sizes_that_are_not_fixed_are_any(shapes, sizes, small_model, tmp_path):
    assert dims(configuration(tmp_path, small_model, shapes=shapes))["images"] == sizes


def test_the_sum_of_both_heads(small_model, tmp_path):
    text = configuration(tmp_path, small_model, outputs=["logits"])
    assert '  { name: "logits", data_type: TYPE_FP32, dims: [7], label_filename: "labels.txt" }\n' in text


def test_features_have_no_labels(small_config, tmp_path):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).eval()
    bundle = write_plan(tmp_path / "bundle", model)
    folder = cf.export_server(bundle, tmp_path / "models", name="backbone")
    text = (folder / "config.pbtxt").read_text()
    assert not (folder / "labels.txt").exists()
    assert "label" not in text
    assert dims(text) == {
        "images": [3, 224, 224],
        "1.map": [64, -1, -1],
        "2.map": [128, -1, -1],
        "3.map": [256, -1, -1],
        "3.tokens": [-1, 48],
    }


def test_every_output_has_its_dimensions(small_model, tmp_path):
    """A number where the model's tensor always has it, -1 where it depends on the image."""
    model = lower(small_model)
    names = model.output_names
    written = dims(configuration(tmp_path, small_model, outputs=names, shapes=[SMALL]))
    shapes = []
    for size in (32, 64):
        with torch.no_grad():
            values = model.with_outputs(names)(torch.zeros(2, 3, size, size))
        shapes.append({name: list(value.shape[1:]) for name, value in zip(names, values, strict=True)})
    for name in names:
        small, large = (shape[name] for shape in shapes)
        assert len(written[name]) == len(small)
        for given, *seen in zip(written[name], small, large, strict=True):
            assert given == -1 or [given, given] == seen
            assert given != -1 or seen[0] != seen[1]


@pytest.mark.skipif(not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX")
def test_the_dimensions_do_not_contradict_the_engines(small_model, tmp_path):
    """The server refuses a model whose configuration has another number than the engine; -1 in either fits."""
    pytest.importorskip("onnx")
    names = lower(small_model).output_names
    written = dims(configuration(tmp_path, small_model, outputs=names, shapes=[SMALL]))
    flavor = flavors.get_flavor("tensorrt-rtx")
    trt, log = flavor.module, flavors.Log(flavor)
    network = trt.Builder(log.logger).create_network(0)
    parser = trt.OnnxParser(network, log.logger)
    assert parser.parse(typed_graph(small_model, names, "fp16"))
    tensors = [network.get_input(0), *(network.get_output(index) for index in range(network.num_outputs))]
    assert {tensor.name for tensor in tensors} == set(written)
    for tensor in tensors:
        batch, *sizes = tensor.shape
        assert batch == -1
        assert tensor.dtype == trt.float32
        assert len(sizes) == len(written[tensor.name])
        for ours, theirs in zip(written[tensor.name], sizes, strict=True):
            assert ours == theirs or -1 in (ours, theirs)


# Refusals


def test_an_engine_of_tensorrt_rtx(small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model, flavor="tensorrt-rtx")
    with pytest.raises(BundleError, match=r"an engine for tensorrt-rtx, .*--flavor tensorrt"):
        cf.export_server(bundle, tmp_path / "models", name="conformer")
    assert not (tmp_path / "models").exists()


def test_an_engine_that_takes_no_single_images(small_model, tmp_path):
    """However it is configured, the server runs what it has when the queue's time is up."""
    bundle = write_plan(tmp_path / "bundle", small_model, shapes=[Shapes((8, 8, 8)), Shapes((4, 8, 32))])
    with pytest.raises(BundleError, match=r"takes 4 images or more, .*build one with --batch 1,4,32"):
        cf.export_server(bundle, tmp_path / "models", name="conformer")


def test_larger_images_in_smaller_batches(small_model, tmp_path):
    """The server would batch as many large images as it may small ones."""
    shapes = [Shapes((1, 8, 64)), Shapes((1, 1, 4), (448,) * 3, (448,) * 3)]
    bundle = write_plan(tmp_path / "bundle", small_model, shapes=shapes)
    with pytest.raises(BundleError, match=r"takes other batches for other images \(\[\(1, 4\), \(1, 64\)\]\)"):
        cf.export_server(bundle, tmp_path / "models", name="conformer")
