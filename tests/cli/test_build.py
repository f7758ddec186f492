"""The commands that make what is deployed, driven as a user would; and predict with what they made."""

from __future__ import annotations

import hashlib
import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.cli import arguments as arguments_module
from conformer_fast.cli import build, main
from conformer_fast.deploy.load import write_tensorrt_bundle
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.model.distance import relative_error
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.shapes import Shapes

onnx = pytest.importorskip("onnx")
needs_rtx = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)
DIGITS = ("--model", "digits")
RTX = ("--flavor", "tensorrt-rtx")


@pytest.fixture
def digit_files(tmp_path):
    """Twenty of scikit-learn's digits as PNG files, in two folders; the first ten labels are 0 ... 9."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    from conformer_fast.datasets.digits import digit_image

    paths = []
    for index, pixels in enumerate(load_digits().images[:20]):
        folder = tmp_path / "photos" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(str(folder / f"{index:02}.png"))
        digit_image(pixels).save(paths[-1])
    return paths


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# export


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_export_writes_a_graph_that_is_right(capsys, precision, tmp_path, digit_files):
    file = tmp_path / "digits.onnx"
    calibration = ["--calibration", tmp_path / "photos"] if precision == "int8" else []
    status, out, err = run(capsys, "export", *DIGITS, "--precision", precision, *calibration, "-o", file)
    size = file.stat().st_size
    assert (status, err) == (0, "")
    assert out == f"{file}: {size / 1e6:.1f} MB, {precision}, outputs conv_logits, trans_logits\n"
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert [output.name for output in proto.graph.output] == list(LOGITS)
    types = {tensor.data_type for tensor in proto.graph.initializer}
    extra = {"fp32": set(), "fp16": {onnx.TensorProto.FLOAT16}, "bf16": {onnx.TensorProto.BFLOAT16}}
    assert types - {onnx.TensorProto.INT64, onnx.TensorProto.FLOAT} == extra.get(
        precision, {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
    )
    if precision != "bf16":  # ONNX Runtime does not compute it
        images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
        session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = cf.create_model("digits", weights="packaged")(images)
        for value, exact in zip(session.run(LOGITS, {"images": images.numpy()}), expected, strict=True):
            assert relative_error(torch.from_numpy(value), exact) < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[precision]


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        (["--features"], ["1.map", "2.map", "3.map", "3.tokens"]),
        (["--outputs", "logits"], ["logits"]),
        (["--outputs", "3.pooled, trans_logits,"], ["3.pooled", "trans_logits"]),
        (["--features", "--outputs", "2.map"], ["2.map"]),
    ],
    ids=str,
)
def test_export_of_other_outputs(capsys, options, outputs, tmp_path):
    file = tmp_path / "digits.onnx"
    status, out, _ = run(capsys, "export", *DIGITS, *options, "-o", file, "--json")
    assert status == 0
    assert json.loads(out) == {
        "file": str(file),
        "bytes": file.stat().st_size,
        "precision": "fp16",
        "outputs": outputs,
    }
    assert [output.name for output in onnx.load(file).graph.output] == outputs


def test_calibration_takes_as_many_pictures_as_asked(capsys, tmp_path, digit_files, monkeypatch):
    """Of the size that was asked for."""
    shapes, original = [], arguments_module.images_in

    def spy(folder, side, limit):
        for batch in original(folder, side, limit):
            shapes.append(tuple(batch.shape))
            yield batch

    monkeypatch.setattr(arguments_module, "images_in", spy)
    calibration = ["--precision", "int8", "--calibration", tmp_path / "photos"]
    arguments = ["export", *DIGITS, *calibration, "-o", tmp_path / "a.onnx"]
    assert run(capsys, *arguments)[0] == 0
    assert run(capsys, *arguments, "--calibration-images", "9", "--size", "96")[0] == 0
    assert shapes == [(8, 3, 64, 64), (8, 3, 64, 64), (4, 3, 64, 64), (8, 3, 96, 96), (1, 3, 96, 96)]


# build


@needs_rtx
def test_build_with_every_option(capsys, tmp_path, digit_files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(b"secret")
    weights = cf.create_model("digits", weights="packaged")
    cf.save_weights(weights.state_dict(), "digits.safetensors")
    arguments = [
        *("build", "--model", "digits", "--weights", "digits.safetensors", "--precision", "int8"),
        *("--calibration", "photos", "--calibration-images", "16", "--batch", "1,8,32", "--size", "32,64,96"),
        *("--target", "sm86,sm89,sm120", "--flavor", "tensorrt-rtx", "--outputs", "logits", "--key", "key"),
        *("-o", "my engine"),
    ]
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    manifest = read_bundle("my engine", b"secret").manifest
    assert manifest.precision == "int8"
    assert manifest.profiles == (Shapes((1, 8, 32), (32, 64, 96), (32, 64, 96)),)
    assert manifest.runtime["targets"] == ["sm86", "sm89", "sm120"]
    assert manifest.outputs == ("logits",)
    assert Path("my engine/labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    rtx = flavors.get_flavor("tensorrt-rtx")
    megabytes = manifest.files["model.plan"].bytes / 1e6
    first, *rest = out.splitlines()
    assert first.endswith(f"my engine: {megabytes:.1f} MB, tensorrt-rtx {rtx.version}, sm86, sm89, sm120")
    if manifest.measured:
        assert rest[0].startswith("error of the graph (ONNX Runtime ")
        assert rest[0].endswith(f", 8 of the calibration): logits {manifest.measured['error']['logits']:.2g}")

    # The command in the manifest builds the same again, for the GPU of whoever needs it.
    command = shlex.split(manifest.rebuild)
    assert command[0] == "conformer-fast"
    assert not {"--target", "sm86,sm89,sm120"} & set(command)
    assert run(capsys, *command[1:], "--target", "sm120,sm89,sm86")[0] == 0
    assert read_bundle("my engine", b"secret").manifest == manifest


@needs_rtx
def test_build_as_json(capsys, tmp_path):
    folder = tmp_path / "engine"
    arguments = ["build", *DIGITS, *RTX, "--target", "sm86", "-o", folder, "--json"]
    status, out, err = run(capsys, *arguments)
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert result.pop("folder") == str(folder)
    assert result == read_bundle(folder).manifest.to_json()
    assert result["precision"] == "fp16"
    assert result["profiles"] == [{"batch": [1, 8, 64], "height": [64] * 3, "width": [64] * 3}]
    assert result["files"]["model.plan"]["sha256"] == hashlib.sha256((folder / "model.plan").read_bytes()).hexdigest()


@needs_rtx
def test_build_of_features(capsys, tmp_path):
    status, out, _ = run(
        capsys, "build", *DIGITS, *RTX, "--features", "--batch", "2", "--target", "sm89", "-o", tmp_path / "e"
    )
    manifest = read_bundle(tmp_path / "e").manifest
    assert status == 0
    assert manifest.profiles[0].batch == (2, 2, 2)
    assert manifest.outputs == ("1.map", "2.map", "3.map", "3.tokens")
    assert "--features" in manifest.rebuild
    assert len(out.splitlines()) == (2 if manifest.measured else 1)


@needs_rtx
@pytest.mark.parametrize(
    "arguments",
    [
        ["build", *DIGITS, *RTX, "--target", "sm90"],
        ["build", *DIGITS, *RTX, "--target", "8.6"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--precision", "fp8"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--precision", "int8"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--calibration", "."],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--precision", "int8", "--calibration", "absent"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--size", "8"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--outputs", "scores"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--outputs", ","],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--key", "absent"],
        ["build", *DIGITS, *RTX, "--target", "sm86", "--weights", "absent.pth"],
        ["export", *DIGITS, "--outputs", "scores"],
        ["export", *DIGITS, "--outputs", ","],
        ["export", *DIGITS, "--features", "--outputs", "logits"],
        ["export", *DIGITS, "--precision", "fp8"],
    ],
    ids=lambda arguments: " ".join([arguments[0], *arguments[-2:]]),
)
def test_what_cannot_be_made_is_one_line_and_status_2(capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments, "-o", "made")
    assert (status, out) == (2, "")
    assert err.startswith(f"conformer-fast {arguments[0]}: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--batch", value) for value in ("0", "-1", "1,2", "8,1,64", "1,8,4", "one", "1;8;64", "1,8,64,64", "")],
        *[("--size", value) for value in ("0,224,224", "224x224", "1.5")],
        ("--precision", "fp64"),
        ("--flavor", "onnx"),
        ("--calibration-images", "0"),
    ],
)
def test_wrong_values_are_usage_errors(capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main.main(["build", *DIGITS, option, value, "-o", "engine"])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"argument {option}: " in err
    if option in ("--batch", "--size"):
        assert f"must be one number, or three that do not fall such as 1,8,32; got {value!r}" in err


@pytest.mark.parametrize("command", ["build", "export"])
def test_an_output_must_be_named(capsys, command):
    with pytest.raises(SystemExit):
        main.main([command, *DIGITS])
    assert "-o" in capsys.readouterr().err


# triton-repo


def write_plan(folder: Path, **changes) -> Path:
    """A bundle of the digits model whose plan is any bytes."""
    entries = {
        "precision": "fp16",
        "precisions": {},
        "profiles": [Shapes((1, 2, 4), (96, 96, 96), (96, 96, 96))],
        "flavor": SimpleNamespace(name="tensorrt", version="10.13.2.6"),
        "targets": ["sm86"],
        "weights": "0",
        "onnx": "1",
        "rebuild": "conformer-fast build ...",
    }
    model = cf.create_model("digits", weights="packaged")
    return write_tensorrt_bundle(folder, adopt(model), b"plan", **{**entries, **changes})


def test_triton_repo(capsys, tmp_path):
    bundle, models = write_plan(tmp_path / "digits-fp16"), tmp_path / "models"
    status, out, err = run(capsys, "triton-repo", bundle, "-o", models)
    assert (status, out, err) == (0, f"{models / 'digits-fp16'}\n", "")
    status, out, _ = run(capsys, "triton-repo", bundle, "-o", models, "--name", "two", "--instances", 2, "--json")
    assert (status, json.loads(out)) == (0, {"folder": str(models / "two"), "name": "two"})
    assert {path.name for path in models.iterdir()} == {"digits-fp16", "two"}
    assert "count: 2" in (models / "two" / "config.pbtxt").read_text()


def test_triton_repo_with_a_key(capsys, tmp_path):
    (tmp_path / "key").write_bytes(b"secret")
    bundle = write_plan(tmp_path / "digits", key=b"secret")
    assert run(capsys, "triton-repo", bundle, "-o", tmp_path / "models", "--key", tmp_path / "key")[0] == 0
    (tmp_path / "key").write_bytes(b"other")
    status, _, err = run(capsys, "triton-repo", bundle, "-o", tmp_path / "more", "--key", tmp_path / "key")
    assert (status, err.count("\n")) == (2, 1)
    assert "not signed with this key" in err


@pytest.mark.parametrize("wrong", ["absent", "empty", "damaged", "there", "name"])
def test_triton_repo_refuses_in_one_line(capsys, wrong, tmp_path):
    bundle, name = tmp_path / "bundle", "digits"
    if wrong == "empty":
        bundle.mkdir()
    elif wrong != "absent":
        write_plan(bundle)
    if wrong == "damaged":
        (bundle / "model.plan").write_bytes(b"plam")
    elif wrong == "there":
        (tmp_path / "models" / "digits" / "1").mkdir(parents=True)
    elif wrong == "name":
        name = "my digits"
    status, out, err = run(capsys, "triton-repo", bundle, "-o", tmp_path / "models", "--name", name)
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast triton-repo: ")
    assert err.count("\n") == 1


# predict --bundle


@pytest.fixture
def bundle(tmp_path):
    """The digits model, as saved for OpenVINO."""
    pytest.importorskip("openvino")
    fast = cf.compile(cf.create_model("digits", weights="packaged"), backend="openvino", precision="fp32")
    fast(torch.zeros(1, 3, 64, 64))
    return fast.save(tmp_path / "digits-engine")


def test_predict_with_a_bundle(capsys, bundle, digit_files):
    status, out, err = run(capsys, "predict", *digit_files[:10], "--bundle", bundle, "--json", "--topk", 2)
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert [entry["top"][0]["label"] for entry in result["images"]] == [str(digit) for digit in range(10)]
    assert result["bundle"] == str(bundle)
    assert result["run"] == "openvino fp32: from digits-engine"
    assert not {"model", "weights"} & set(result)  # neither was used

    _, out, _ = run(capsys, "predict", *digit_files[:10], *DIGITS, "--backend", "openvino", "--json", "--topk", 2)
    compiled = json.loads(out)
    assert (compiled["model"], compiled["weights"]) == ("digits", "packaged")
    assert "bundle" not in compiled
    for ours, theirs in zip(result["images"], compiled["images"], strict=True):
        assert [top["index"] for top in ours["top"]] == [top["index"] for top in theirs["top"]]


def test_predict_prints_for_people(capsys, bundle, digit_files):
    status, out, err = run(capsys, "predict", digit_files[3], "--bundle", bundle, "--size", 96)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == digit_files[3]
    assert len(lines) == 1 + 5


def test_predict_takes_the_labels_of_the_bundle(capsys, tmp_path, digit_files):
    pytest.importorskip("openvino")
    model = cf.create_model("digits", num_classes=3)
    folder = cf.compile(model, backend="openvino", precision="fp32").save(tmp_path / "three")
    _, out, _ = run(capsys, "predict", digit_files[0], "--bundle", folder, "--json")
    assert {top["label"] for top in json.loads(out)["images"][0]["top"]} == {"class 0", "class 1", "class 2"}


def test_predict_fits_images_to_the_profile(capsys, tmp_path, monkeypatch, digit_files):
    """Of the size that the engine is tuned for, in batches that it takes."""
    runtime = pytest.importorskip("conformer_fast.engines.tensorrt.engine")
    write_plan(tmp_path / "engine")
    model, seen = cf.create_model("digits", weights="packaged"), []

    def engine(plan, *args):
        def run_batch(images):
            if images.shape[-1] != 96:
                raise ValueError("64x64 do not fit")
            seen.append(tuple(images.shape))
            with torch.no_grad():
                return tuple(model(images))

        return run_batch

    flavor = SimpleNamespace(name="tensorrt", version="10.13.2.6", has_runtime_cache=False)
    monkeypatch.setattr(flavors, "get_flavor", lambda name: flavor)
    monkeypatch.setattr(flavors, "gpu_target", lambda: "sm86")
    monkeypatch.setattr(runtime, "TensorRTEngine", engine)
    monkeypatch.setattr(cf.bundle, "_device_here", lambda manifest: "cpu")
    status, out, err = run(capsys, "predict", *digit_files[:6], "--bundle", tmp_path / "engine", "--json")
    assert (status, err) == (0, "")
    assert seen == [(4, 3, 96, 96), (2, 3, 96, 96)]
    assert len(json.loads(out)["images"]) == 6
    status, _, err = run(capsys, "predict", digit_files[0], "--bundle", tmp_path / "engine", "--size", 64)
    assert status == 2
    assert "64x64 do not fit" in err


def test_predict_needs_both_heads(capsys, tmp_path, digit_files):
    pytest.importorskip("openvino")
    model = cf.create_model("digits", weights="packaged", features_only=True)
    folder = cf.compile(model, backend="openvino", precision="fp32").save(tmp_path / "features")
    status, out, err = run(capsys, "predict", digit_files[0], "--bundle", folder)
    assert (status, out) == (2, "")
    assert err == (
        f"conformer-fast predict: {folder} returns 1.map, 2.map, 3.map, 3.tokens; "
        f"predict needs conv_logits, trans_logits\n"
    )


def test_predict_with_a_damaged_bundle(capsys, bundle, digit_files):
    (bundle / "labels.txt").write_text("0\n" * 10)
    status, out, err = run(capsys, "predict", digit_files[0], "--bundle", bundle)
    assert (status, out) == (2, "")
    assert err.startswith(f"conformer-fast predict: {bundle / 'labels.txt'} is not the file")
    assert err.count("\n") == 1


def test_predict_with_no_bundle(capsys, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    status, _, err = run(capsys, "predict", tmp_path / "a.png", "--bundle", tmp_path)
    assert status == 2
    assert "manifest.json cannot be read" in err


# cache list


@needs_rtx
def test_the_cache_lists_engines_of_both_kinds(capsys, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    assert run(capsys, "build", *DIGITS, *RTX, "--target", "sm89,sm120", "-o", tmp_path / "engine")[0] == 0
    model = cf.create_model("digits", weights="packaged")
    cf.compile(model, backend="openvino", precision="fp32")(torch.zeros(1, 3, 64, 96))
    status, out, _ = run(capsys, "cache", "list")
    first, *rows = out.splitlines()
    assert status == 0
    assert first.startswith("2 engines, ")
    assert {tuple(row.split()[1:4]) for row in rows} == {
        ("openvino", "fp32", "64x96"),
        ("tensorrt", "fp16", "sm89,sm120"),
    }
    listed = json.loads(run(capsys, "cache", "list", "--json")[1])
    assert {entry["fields"]["backend"] for entry in listed} == {"openvino", "tensorrt"}
    assert run(capsys, "cache", "clear")[0] == 0
    assert json.loads(run(capsys, "cache", "list", "--json")[1]) == []


def test_export_into_a_folder_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "model_of", lambda *_: pytest.fail("worked first"))
    status, _, err = run(capsys, "export", *DIGITS, "-o", tmp_path / "none" / "a.onnx")
    assert status == 2
    assert "none does not exist; create it first" in err


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "sm90"], "cannot build for sm90"),
        (["--target", "sm86", "--precision", "fp8"], "'fp8' needs sm89 or newer"),
        (["--target", "sm86", "--key", "none"], "No such file"),
    ],
)
def test_what_cannot_be_is_refused_before_the_weights_are_fetched(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "model_of", lambda *_: pytest.fail("worked first"))
    status, _, err = run(capsys, "build", *DIGITS, *RTX, *options, "-o", "engine")
    assert status == 2
    assert message in err


@needs_rtx
def test_own_labels(capsys, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"digit {digit}\n" for digit in range(10)), encoding="utf-8")
    arguments = ["build", *DIGITS, *RTX, "--target", "sm86", "--labels", names, "-o", tmp_path / "engine"]
    assert run(capsys, *arguments)[0] == 0
    assert (tmp_path / "engine" / "labels.txt").read_text() == names.read_text()
    names.write_text("one\n")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "1 labels for a model of 10 classes" in err


def test_without_onnx(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("conformer_fast.deploy.build.find_spec", lambda name: None)
    status, _, err = run(capsys, "export", *DIGITS, "-o", tmp_path / "a.onnx")
    assert status == 2
    assert 'pip install "conformer-fast[tensorrt]"' in err


def test_ctrl_c_is_one_line(capsys, tmp_path, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "graph_of", press)
    status, out, err = run(capsys, "export", *DIGITS, "-o", tmp_path / "a.onnx")
    assert (status, out, err) == (130, "", "conformer-fast export: interrupted\n")


@pytest.mark.parametrize("option", [["--weights", "none"], ["--backend", "reference"], ["--precision", "fp32"]])
def test_a_bundle_says_how_it_runs(option, capsys, digit_files, tmp_path):
    status, _, err = run(capsys, "predict", digit_files[0], "--bundle", tmp_path, *option)
    assert status == 2
    assert f"leave out {option[0]}" in err


def test_predict_with_a_key(capsys, digit_files, tmp_path):
    pytest.importorskip("openvino")
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(b"secret")
    other.write_bytes(b"wrong")
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="openvino")
    fast.save(tmp_path / "bundle", key=b"secret")
    arguments = ["predict", digit_files[3], "--bundle", tmp_path / "bundle", "--topk", 1, "--key"]
    status, out, _ = run(capsys, *arguments, key)
    assert status == 0
    assert "3 (3)" in out
    status, _, err = run(capsys, *arguments, other)
    assert status == 2
    assert "is not signed with this key" in err
