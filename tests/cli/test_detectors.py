"""What calibrate, build, evaluate and predict make of a detector's checkpoint or bundle."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from coco_samples import write_pictures
from detector_samples import small, write_weights

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import flavors

pytest.importorskip("openvino")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")]
needs_rtx = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "detector.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def quantization(weights, folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("q") / "int8.json"
    cf.calibrate(cf.create_detector(weights=weights), folder, smoothquant=False).save(file)
    return file


def test_calibrate(run, run_json, weights, folder, quantization, tmp_path):
    file = tmp_path / "int8.json"
    line = ("calibrate", "--weights", weights, "--data", folder, "--no-smoothquant", "-o", file)
    status, out, err = run(*line)
    assert (status, err) == (0, "")
    assert out.startswith(f"{file}: ")
    assert out.endswith("products in int8, ranges of 3 images\n")
    assert file.read_bytes() == quantization.read_bytes()
    status, result, _ = run_json(*line)
    assert (status, result["images"]) == (0, 3)
    assert {name.partition(".")[0] for name in result["products"]} == {"proposer", "boxes", "masks"}


def test_calibrate_refuses_what_is_for_classifiers(run, weights, folder, tmp_path):
    line = ("calibrate", "--weights", weights, "--data", folder, "-o", tmp_path / "q.json")
    for more, message in (
        (("--limit", 3), "leave out --limit"),
        (("--size", 64), "leave out --size"),
        (("--max-drop", 1), "leave out --max-drop"),
        (("--precision", "fp8"), "put in int8, got precision 'fp8'"),
        (("--data", weights), "empty, damaged or not an image"),
    ):
        status, _, err = run(*line, *more)
        assert status == 2
        assert message in err
    assert not (tmp_path / "q.json").exists()


@needs_rtx
def test_build(run, weights, quantization, tmp_path):
    for more, sides in (((), (32, 800, 1344)), (("--size", "64,96,128"), (64, 96, 128))):
        status, out, err = run(
            *("build", "--weights", weights, "--target", "sm86", "--flavor", "tensorrt-rtx", *more),
            *("--precision", "int8", "--quantization", quantization, "-o", tmp_path / "bundle"),
        )
        assert (status, err) == (0, "")
        assert "error of the graph" in out
        manifest = read_bundle(tmp_path / "bundle", format_of).manifest
        assert manifest.networks["proposer"].shapes[0].height == sides
        assert manifest.rebuild.startswith(f"conformer-fast build --weights {weights} ")
        assert manifest.precision == "int8"


@needs_rtx
def test_build_refuses_what_is_for_classifiers(run, weights, tmp_path):
    line = ("build", "--weights", weights, "--target", "sm86", "--flavor", "tensorrt-rtx", "-o", tmp_path / "b")
    for more, message in (
        (("--outputs", "logits"), "leave out --outputs"),
        (("--batch", "2"), "--batch of a detector needs the --size"),
        (("--size", "100"), "multiples of 32, got 100"),
        (("--precision", "int8"), "takes its ranges from images"),
    ):
        status, _, err = run(*line, *more)
        assert status == 2
        assert message in err
    assert not (tmp_path / "b").exists()


def test_what_runs_classifiers_says_what_takes_a_detector(run, weights, folder, tmp_path):
    bundle = cf.compile(small(), precision="fp32").save(tmp_path / "bundle")
    picture = folder / "a.png"
    for line in (
        ("predict", picture, "--weights", weights),
        ("evaluate", "--data", folder, "--weights", weights),
        ("export", "--weights", weights, "-o", tmp_path / "x.onnx"),
        ("diff", "--weights", weights),
        ("serve", "--weights", weights),
    ):
        status, _, err = run(*line)
        assert status == 2
        assert "is a detector's checkpoint; `conformer-fast` detect, evaluate --coco, calibrate and build" in err
    for line in (("predict", picture), ("evaluate", "--data", folder), ("serve",)):
        status, _, err = run(*line, "--bundle", bundle)
        assert status == 2
        assert "holds a detector" in err
    status, _, err = run("export", "--features", "--weights", weights, "-o", tmp_path / "backbone.onnx")
    assert status == 0  # its backbone alone
    status, _, err = run("detect", picture, "--bundle", cf.compile(cf.create_model("digits")).save(tmp_path / "digits"))
    assert status == 2
    assert "holds a classifier or a backbone, and a detector is asked for" in err


def test_the_packaged_one(run, folder, tmp_path):
    """In commands of classifiers and detectors it is meant where no model is named."""
    pytest.importorskip("sklearn")
    status, out, err = run("calibrate", "--weights", "packaged", "--data", folder, "-o", tmp_path / "q.json")
    assert (status, "products in int8, ranges of 3 images" in out) == (0, True), err
    line = ("detect", folder / "a.png", "--weights", "packaged", "--precision", "int8")
    assert run(*line, "--quantization", tmp_path / "q.json")[0] == 0
    line = ("calibrate", "--model", "digits", "--weights", "packaged", "--data", folder, "--size", 64)
    status, _, err = run(*line, "-o", tmp_path / "digits.json")
    assert status == 0, err


@needs_rtx
def test_the_packaged_one_is_built_for_its_pictures(run, tmp_path):
    line = ("build", "--weights", "packaged", "--target", "sm86", "--flavor", "tensorrt-rtx", "-o", tmp_path / "b")
    assert run(*line)[0] == 0
    shapes = read_bundle(tmp_path / "b", format_of).manifest.networks["proposer"].shapes[0]
    assert shapes == cf.Shapes((1, 1, 1), (32, 128, 128), (32, 128, 128))
