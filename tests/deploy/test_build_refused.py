"""What build() refuses, before any work where it can, and that a build that fails leaves everything as it was."""

from dataclasses import replace

import lookalikes
import pytest
import torch
from build_samples import NEEDS_RTX, SHAPES, build_in, calibration
from bundle_samples import contents

import conformer_fast as cf
from conformer_fast.calibration import resolve
from conformer_fast.deploy.build import build
from conformer_fast.engines import cache
from conformer_fast.engines.onnx import export
from conformer_fast.engines.tensorrt import plan as plan_module
from conformer_fast.engines.tensorrt.backend import TensorRT
from conformer_fast.errors import BackendError, EngineError
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes

pytestmark = NEEDS_RTX


@pytest.fixture
def no_work(monkeypatch):
    """Fails a test in which anything is calibrated or exported."""

    def refuse(*args, **kwargs):
        pytest.fail("this should have been refused before any work")

    monkeypatch.setattr(resolve, "calibrate", refuse)
    monkeypatch.setattr(export, "onnx_from_model", refuse)
    monkeypatch.setattr(plan_module, "engine_from_onnx", refuse)


WRONG = {
    "precision": ({"precision": "fp64", "targets": ["sm86"]}, ValueError, "unknown precision 'fp64'"),
    "flavor": ({"flavor": "onnx"}, ValueError, "unknown flavor 'onnx'"),
    "target's name": ({"targets": ["8.6"]}, ValueError, "a target is a compute capability written like"),
    "Hopper": ({"targets": ["sm86", "sm90"]}, BackendError, "cannot build for sm90; it can for "),
    "Turing": ({"targets": ["sm75"]}, BackendError, "cannot build for sm75; it can for sm80, "),
    "fp8 on Ampere": ({"precision": "fp8", "targets": ["sm86"]}, BackendError, "'fp8' needs sm89 or newer"),
    "shapes": (
        {"shapes": [SHAPES, Shapes(height=(8, 32, 32))]},
        ValueError,
        "images are 8x224, smaller than one 16x16 patch",
    ),
    "no output": ({"outputs": []}, ValueError, "outputs must be one or more"),
    "output": ({"outputs": ["scores"]}, ValueError, "no such outputs: .*'scores'"),
    "output of 8 bits": (
        {"outputs": ["scores"], "precision": "int8", "quantization": calibration()},
        ValueError,
        "no such outputs: .*'scores'",
    ),
    "option": ({"threads": 2}, BackendError, "backend 'tensorrt' has no option threads; it has shapes, flavor, targ"),
    "output twice": ({"outputs": ["logits", "logits"]}, ValueError, "different names"),
    "no images": ({"precision": "int8", "quantization": None}, ValueError, "takes its ranges from images"),
    "images in vain": ({"quantization": calibration()}, ValueError, "quantization is for int8 and fp8; leave it"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_built_is_refused_before_any_work(options, error, message, small_model, tmp_path, no_work):
    given = {"precision": "fp16", "targets": ["sm86"], "shapes": [SHAPES], "flavor": "tensorrt-rtx"}
    with pytest.raises(error, match=message):
        build(small_model, tmp_path / "bundle", **{**given, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["targets", "outputs"])
def test_one_name_is_no_list(name, small_model, tmp_path):
    with pytest.raises(TypeError, match=rf"{name} must be a list, such as \['sm86'\]"):
        cf.build(small_model, tmp_path / "engine", **{"targets": ["sm86"], "flavor": "tensorrt-rtx", name: "sm86"})


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("reference", "'reference' has no engine to save; compile with backend triton, tensorrt, native, openvino"),
        ("triton", "'triton' cannot run here: no CUDA device"),
        ("openvino", "precision 'fp16' is not available on backend 'openvino' here"),
    ],
)
def test_backends_that_cannot_build_it_here(backend, message, small_model, tmp_path, no_work, monkeypatch):
    if backend == "openvino":
        pytest.importorskip("openvino")
        monkeypatch.setattr("conformer_fast.engines.openvino.device.native_precisions", lambda *_: ("fp32",))
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=message):
        build(small_model, tmp_path / "bundle", backend=backend)
    assert list(tmp_path.iterdir()) == []


def test_no_target_and_no_gpu(small_model, tmp_path, no_work, monkeypatch):
    monkeypatch.setattr(plan_module, "gpu_target", lambda: None)
    with pytest.raises(BackendError, match="there is no CUDA GPU here to build for: give --target"):
        build(small_model, tmp_path / "bundle", flavor="tensorrt-rtx")


def test_a_model_that_does_not_pad_takes_whole_patches_only(small_config, tmp_path, no_work):
    model = lookalikes.fill(Conformer(small_config, pad="none")).eval()
    with pytest.raises(ValueError, match="a 40x64 image gives a 10x16 stem map, which is not whole 16x16 patches"):
        build_in(tmp_path / "bundle", model, shapes=[replace(SHAPES, height=(32, 40, 64))])


def test_a_model_in_training_mode(small_model, tmp_path, no_work):
    with pytest.raises(ValueError, match=r"in training mode; call model.eval\(\) first"):
        build_in(tmp_path / "bundle", small_model.train())


def test_a_model_beyond_the_range_of_fp16(small_model, tmp_path, fresh_cache, built):
    """Found by ONNX Runtime, before TensorRT starts."""
    with torch.no_grad():
        small_model.conv_1.bn1.weight *= 1e6
        small_model.conv_1.bn3.weight *= 1e3
    with pytest.raises(ValueError, match=r"of the typed graph is NaN or infinite.*use bf16 or fp32"):
        build_in(tmp_path / "bundle", small_model)
    assert built == []
    assert build_in(tmp_path / "bundle", small_model, "bf16").measured is None


def test_a_failed_build_writes_nothing(small_model, tmp_path, fresh_cache, monkeypatch):
    build_in(tmp_path / "old", small_model)
    before = contents(tmp_path / "old")

    def fail(*args):
        raise EngineError("TensorRT-RTX built no engine")

    monkeypatch.setattr(plan_module, "engine_from_onnx", fail)
    for folder in ("old", "new"):
        with pytest.raises(EngineError, match="built no engine"):
            build_in(tmp_path / folder, small_model, targets=["sm89"])
    assert contents(tmp_path / "old") == before
    assert {path.name for path in tmp_path.iterdir()} == {"old", "cache"}
    assert len(cache.cached_engines()) == 1


def test_a_folder_with_other_files_is_left_alone(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(TensorRT, "graph", lambda *_: pytest.fail("worked before it looked at the folder"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(cf.BundleError, match=r"holds files that are no bundle's: notes\.txt"):
        build_in(tmp_path, small_model)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
