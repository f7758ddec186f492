"""conformer-fast build."""

from __future__ import annotations

import hashlib
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import flavors

pytest.importorskip("onnx")
needs_rtx = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)
DIGITS = ("--model", "digits")
RTX = ("--flavor", "tensorrt-rtx")


def manifest_of(folder: str | Path, key: bytes | None = None):
    return read_bundle(folder, format_of, key).manifest


@needs_rtx
def test_every_option(run, tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(b"a secret of 24 bytes ...")
    Path("names").write_text("".join(f"digit {digit}\n" for digit in range(10)))
    cf.save_weights(cf.create_model("digits", weights="packaged").state_dict(), "digits.safetensors")
    status, out, err = run(
        *("build", "--model", "digits", "--weights", "digits.safetensors", "--precision", "int8"),
        *("--calibration", digit_folder, "--calibration-limit", "16", "--batch", "1,8,32", "--size", "32,64,96"),
        *("--target", "sm86,sm89,sm120", "--flavor", "tensorrt-rtx", "--outputs", "logits", "--key", "key"),
        *("--class-names", "names", "-o", "my engine"),
    )
    assert (status, err) == (0, "")
    manifest = manifest_of("my engine", b"a secret of 24 bytes ...")
    assert manifest.precision == "int8"
    assert manifest.shapes == (cf.Shapes((1, 8, 32), (32, 64, 96), (32, 64, 96)),)
    assert manifest.runtime["targets"] == ["sm86", "sm89", "sm120"]
    assert manifest.outputs == ("logits",)
    assert Path("my engine/labels.txt").read_text() == Path("names").read_text()
    rtx = flavors.get_flavor("tensorrt-rtx")
    megabytes = sum(file.bytes for file in manifest.files.values()) / 1e6
    first, *rest = out.splitlines()
    assert first.endswith(f"my engine: {megabytes:.1f} MB, tensorrt-rtx {rtx.version}, sm86, sm89, sm120")
    if manifest.measured:
        assert rest[0].startswith("error of the graph (onnxruntime ")
        assert rest[0].endswith(f", 8 of calibration): logits {manifest.measured['error']['logits']:.2g}")

    # The command in the manifest builds the same again, for the GPU of whoever needs it.
    command = shlex.split(manifest.rebuild)
    assert command[0] == "conformer-fast"
    assert not {"--target", "sm86,sm89,sm120"} & set(command)
    assert run(*command[1:], "--target", "sm120,sm89,sm86")[0] == 0
    assert manifest_of("my engine", b"a secret of 24 bytes ...") == manifest


@needs_rtx
def test_for_programs(run_json, tmp_path):
    folder = tmp_path / "engine"
    status, result, err = run_json("build", *DIGITS, *RTX, "--target", "sm86", "-o", folder)
    assert (status, err) == (0, "")
    assert result.pop("folder") == str(folder)
    assert result == manifest_of(folder).to_json()
    assert result["precision"] == "fp16"
    assert result["shapes"] == [{"batch": [1, 8, 64], "height": [64] * 3, "width": [64] * 3}]
    assert result["files"]["model.plan"]["sha256"] == hashlib.sha256((folder / "model.plan").read_bytes()).hexdigest()


@needs_rtx
def test_features(run, tmp_path):
    status, out, _ = run("build", *DIGITS, *RTX, "--features", "--batch", "2", "--target", "sm89", "-o", tmp_path / "e")
    manifest = manifest_of(tmp_path / "e")
    assert status == 0
    assert manifest.shapes[0].batch == (2, 2, 2)
    assert manifest.outputs == ("1.map", "2.map", "3.map", "3.tokens")
    assert "--features" in manifest.rebuild
    assert len(out.splitlines()) == (2 if manifest.measured else 1)


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8"], "smaller than one 16x16 patch"),
        (["--outputs", "scores"], "no such outputs"),
        (["--outputs", ","], "one or more different names"),
        (["--weights", "absent.pth"], "absent.pth"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(run, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("build", *DIGITS, *RTX, "--target", "sm86", *options, "-o", "made")
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast build: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "sm90"], "cannot build for sm90"),
        (["--target", "8.6"], "8.6"),
        (["--target", "sm86", "--precision", "fp8", "--calibration", "."], "'fp8' needs sm89 or newer"),
        (["--target", "sm86", "--precision", "int8"], "int8 takes its ranges from images"),
        (["--target", "sm86", "-o", "/"], "/"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_weights_are_fetched(run, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: pytest.fail("worked first"))
    status, _, err = run("build", *DIGITS, *RTX, "-o", "engine", *options)
    assert status == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--batch", value) for value in ("0", "-1", "1,2", "8,1,64", "1,8,4", "one", "1;8;64", "1,8,64,64", "")],
        *[("--size", value) for value in ("0,224,224", "224x224", "1.5")],
        ("--precision", "fp64"),
        ("--calibration-limit", "0"),
    ],
)
def test_wrong_values_are_usage_errors(run, option, value):
    status, _, err = run("build", *DIGITS, option, value, "-o", "engine")
    assert status == 2
    assert f"argument {option}: " in err
    if option in ("--batch", "--size"):
        assert f"must be one number, or three that do not fall such as 1,8,32; got {value!r}" in err


def test_an_output_must_be_named(run):
    status, _, err = run("build", *DIGITS)
    assert status == 2
    assert "-o" in err


@needs_rtx
def test_too_few_class_names(run, tmp_path):
    (tmp_path / "names").write_text("one\n")
    arguments = ["--target", "sm86", "--class-names", tmp_path / "names", "-o", tmp_path / "engine"]
    status, _, err = run("build", *DIGITS, *RTX, *arguments)
    assert status == 2
    assert "1 labels for a model of 10 classes" in err
