"""build(): real TensorRT-RTX engines, which need no GPU, and what their bundles say of themselves."""

import hashlib
import math
import re
import sys
from importlib.metadata import version

import lookalikes
import onnx
import pytest
import torch
from build_samples import NEEDS_RTX, SHAPES, TARGETS, build_in
from bundle_samples import images

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.bundles.manifest import Manifest
from conformer_fast.datasets.digits import IMAGE_SIZE, load_digits_split
from conformer_fast.deploy import build as build_module
from conformer_fast.deploy.build import build
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.model.config import PACKAGED
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.distance import ALLOWANCE, FLOOR, relative_error
from conformer_fast.model.outputs import LOGITS, feature_names
from conformer_fast.model.precision import DTYPES
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.model.reference import Conformer, ConformerOutput
from conformer_fast.model.shapes import Shapes

pytestmark = NEEDS_RTX
KERNEL = b"_gemm_mha_v2"  # TensorRT-RTX's attention with its softmax


def eager_errors(model: Conformer, precision: str, batch: torch.Tensor) -> list[float]:
    """How far PyTorch's own run in this precision is, head by head."""
    with torch.no_grad():
        exact = model.double()(batch.double())
        eager = model.to(DTYPES[precision])(batch.to(DTYPES[precision]))
    return [relative_error(*pair) for pair in zip(eager, exact, strict=True)]


@pytest.mark.parametrize("precision", TARGETS)
def test_the_manifest_says_what_was_built(precision, small_model, tmp_path):
    folder = tmp_path / "bundle"
    manifest = build_in(folder, small_model, precision)
    rtx = flavors.get_flavor("tensorrt-rtx")
    plan = (folder / "model.plan").read_bytes()
    assert plan.startswith(b"vtrt")
    assert (KERNEL in plan) == (precision != "fp32")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "model.plan", "labels.txt"}
    assert manifest.files["model.plan"] == (hashlib.sha256(plan).hexdigest(), len(plan))
    assert (folder / "labels.txt").read_text().splitlines() == [f"class {index}" for index in range(7)]
    assert manifest == Manifest(
        backend="tensorrt",
        precision=precision,
        precisions={
            "products": precision,
            "attention, maps": precision if precision in DTYPES else "fp16",
            "tokens, norms, softmax, heads, images, outputs": "fp32",
        },
        config=small_model.config,
        pad="stem",
        outputs=LOGITS,
        structure=ConformerOutput(*LOGITS),
        shapes=(SHAPES,),
        runtime={
            "flavor": "tensorrt-rtx",
            "version": rtx.version,
            "targets": sorted(TARGETS[precision], key=flavors.capability),
            "gpu": "",
        },
        preprocessing=manifest.preprocessing,
        labels="labels.txt",
        sha256={"weights": weights_sha256(small_model), "onnx": manifest.sha256["onnx"]},
        rebuild=manifest.rebuild,
        measured=manifest.measured,
        files=manifest.files,
    )
    assert (manifest.preprocessing["mean"], manifest.preprocessing["std"]) == (list(MEAN), list(STD))
    assert manifest.rebuild == (
        f"conformer_fast.build(model, 'bundle', backend='tensorrt', precision={precision!r}, shapes={[SHAPES]!r}, "
        f"flavor='tensorrt-rtx'{'' if precision in DTYPES else ', quantization=images'})"
    )


def test_the_stored_hash_is_that_of_the_graph_that_was_built(small_model, tmp_path, fresh_cache, built):
    manifest = build_in(tmp_path / "bundle", small_model)
    ((graph, shapes, _, targets, precision),) = built
    assert manifest.sha256["onnx"] == hashlib.sha256(graph).hexdigest()
    assert (shapes, list(targets), precision) == ((SHAPES,), ["sm86"], "fp16")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_measured_error_is_within_the_bound(precision, small_model, tmp_path, record_property):
    measured = build_in(tmp_path / "bundle", small_model, precision).measured
    assert measured["runtime"] == {"name": "onnxruntime", "version": version("onnxruntime")}
    assert (measured["images"], measured["source"]) == (2, "noise")
    assert measured["top1_agreement"] == 1
    assert list(measured["error"]) == list(LOGITS)
    eager = eager_errors(small_model, precision, images(2, 3, 32, 64))
    for (name, error), limit in zip(measured["error"].items(), eager, strict=True):
        record_property("table", ("measured error of built engines' graphs", f"small {precision}", name, error))
        assert 0 < error <= ALLOWANCE * limit + FLOOR[precision]


# The floors are some 3 dB below what the worse head has: a grid with one bit less would lose 6.
FLOORS_DB = {("small", "int8"): 29, ("small", "fp8"): 19, ("digits", "int8"): 36, ("digits", "fp8"): 25}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), FLOORS_DB)
def test_the_measured_error_of_8_bits(name, precision, small_model, tmp_path, record_property):
    model, options = small_model, {}
    if name == "digits":
        pytest.importorskip("sklearn")
        model = cf.create_model("digits", weights="packaged")
        size = (IMAGE_SIZE,) * 3
        batches = load_digits_split().train_images[:64].split(5)
        options = {"shapes": [Shapes((1, 2, 4), size, size)], "quantization": batches}
    manifest = build_in(tmp_path / "bundle", model, precision, **options)
    measured = manifest.measured
    assert (measured["images"], measured["source"]) == (8, "calibration")
    assert measured["top1_agreement"] == 1
    assert manifest.config == (PACKAGED["digits"] if name == "digits" else small_model.config)
    for head, error in measured["error"].items():
        decibels = -20 * math.log10(error)
        record_property("table", ("SQNR of built engines' graphs, dB", f"{name} {precision}", head, decibels))
        assert decibels >= FLOORS_DB[name, precision]


def test_bf16_is_not_measured(small_model, tmp_path):
    assert build_in(tmp_path / "bundle", small_model, "bf16").measured is None


def test_nothing_is_measured_without_onnx_runtime(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert build_in(tmp_path / "bundle", small_model).measured is None


@pytest.mark.parametrize("outputs", [["logits"], ["trans_logits", "3.tokens"]], ids=str)
def test_chosen_outputs(outputs, small_model, tmp_path, fresh_cache, built):
    manifest = build_in(tmp_path / "bundle", small_model, outputs=outputs)
    assert manifest.outputs == tuple(outputs)
    assert manifest.structure == (outputs[0] if len(outputs) == 1 else outputs)
    assert manifest.labels == "labels.txt"
    assert list(manifest.measured["error"]) == outputs
    assert manifest.measured["top1_agreement"] == 1
    assert f"outputs={outputs!r}" in manifest.rebuild
    assert output_names(built[0][0]) == outputs


def test_a_backbone(small_config, tmp_path, fresh_cache, built):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).eval()
    manifest = build_in(tmp_path / "bundle", model)
    names = list(feature_names(small_config))
    assert list(manifest.outputs) == names == output_names(built[0][0])
    assert manifest.labels is None
    assert set(manifest.files) == {"model.plan"}
    assert manifest.measured["top1_agreement"] is None
    assert max(manifest.measured["error"].values()) < 2e-3


def output_names(graph: bytes) -> list[str]:
    return [output.name for output in onnx.load_from_string(graph).graph.output]


def test_several_shapes(small_model, tmp_path, fresh_cache, built):
    shapes = (Shapes((1, 1, 1), (64, 64, 64), (64, 64, 64)), SHAPES)
    manifest = build_in(tmp_path / "bundle", small_model, shapes=list(shapes))
    assert manifest.shapes == built[0][1] == shapes


def test_the_model_is_left_alone(small_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    build_in(tmp_path / "bundle", small_model, "int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


def test_a_key_signs(small_model, tmp_path):
    build_in(tmp_path / "bundle", small_model, key=b"a secret of 24 bytes ...")
    assert read_bundle(tmp_path / "bundle", format_of, b"a secret of 24 bytes ...").signed
    with pytest.raises(cf.BundleError, match="not signed with this key"):
        read_bundle(tmp_path / "bundle", format_of, b"another key of this size")


def test_an_engine_of_another_backend(small_model, tmp_path):
    pytest.importorskip("openvino")
    folder = build(small_model, tmp_path / "bundle", backend="openvino", precision="fp32", outputs=["logits"])
    manifest = read_bundle(folder, format_of).manifest
    assert manifest.rebuild == (
        "conformer_fast.build(model, 'bundle', backend='openvino', precision='fp32', outputs=['logits'])"
    )
    logits = cf.load(folder)(images(2, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(logits, small_model(images(2, 3, 32, 32)).logits, rtol=1e-4, atol=1e-4)


def test_a_new_build_replaces_the_old_one(small_model, tmp_path):
    build_in(tmp_path / "bundle", small_model)
    assert build_in(tmp_path / "bundle", small_model, "int8").precision == "int8"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_command_to_rebuild_with_may_be_given(small_model, tmp_path):
    assert build_in(tmp_path / "bundle", small_model, rebuild="make engine").rebuild == "make engine"


def test_the_command_that_rebuilds_is_python(small_model, tmp_path, monkeypatch):
    """It names no target: it is for the machine that the engine does not fit."""
    manifest = build_in(tmp_path / "bundle", small_model, "int8", outputs=["logits"])
    asked = {}
    monkeypatch.setattr(build_module, "build", lambda *args, **options: asked.update(options, folder=args[1]))
    call = re.sub(r"^conformer_fast\.build", "builder.build", manifest.rebuild)
    eval(call, {"builder": build_module, "model": small_model, "Shapes": Shapes, "images": "images"})
    assert asked == {
        "folder": "bundle",
        "backend": "tensorrt",
        "precision": "int8",
        "shapes": [SHAPES],
        "flavor": "tensorrt-rtx",
        "outputs": ["logits"],
        "quantization": "images",
    }


def test_the_usual_shapes_is_the_models():
    for name, side in {"tiny-p16": 224, "digits": 64}.items():
        shapes = cf.TensorRT().for_model(cf.create_model(name)).shapes
        assert shapes == (Shapes((1, 8, 64), (side,) * 3, (side,) * 3),)
