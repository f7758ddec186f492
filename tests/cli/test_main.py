"""The command line, driven as a user would: arguments in, text or JSON and an exit status out."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import conformer_fast as cf
from conformer_fast.cli import main
from conformer_fast.datasets.digits import digit_image
from conformer_fast.engines import cache
from conformer_fast.engines.registry import Settings


@pytest.fixture
def digit_files(tmp_path):
    """The first ten of scikit-learn's digits as PNG files; the first ten labels are 0 ... 9."""
    from sklearn.datasets import load_digits

    paths = []
    for index, pixels in enumerate(load_digits().images[:10]):
        paths.append(str(tmp_path / f"{index}.png"))
        digit_image(pixels).save(paths[-1])
    return paths


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_predict_recognizes_the_digits(capsys, digit_files):
    status, out, _ = run(capsys, "predict", *digit_files, "--model", "digits", "--json", "--topk", "3")
    result = json.loads(out)
    assert status == 0
    assert [entry["image"] for entry in result["images"]] == digit_files
    assert [entry["top"][0]["label"] for entry in result["images"]] == [str(digit) for digit in range(10)]
    assert all(len(entry["top"]) == 3 for entry in result["images"])
    probabilities = [top["probability"] for top in result["images"][0]["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert result["weights"] == "packaged"


@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_predict_prints_for_people(capsys, digit_files, backend):
    status, out, err = run(capsys, "predict", digit_files[7], "--model", "digits", "--backend", backend, "--topk", "99")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == digit_files[7]
    assert lines[1].split()[1:] == ["7", "(7)"]
    assert len(lines) == 1 + 10
    assert err == ""


def test_a_damaged_image_costs_only_itself(capsys, digit_files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    status, out, err = run(capsys, "predict", digit_files[3], str(bad), digit_files[5], "--model", "digits", "--json")
    assert status == 1
    assert [entry["top"][0]["label"] for entry in json.loads(out)["images"]] == ["3", "5"]
    assert [entry["image"] for entry in json.loads(out)["failed"]] == [str(bad)]
    assert str(bad) in err
    assert "Traceback" not in err


def test_only_damaged_images(capsys, tmp_path):
    status, out, err = run(capsys, "predict", str(tmp_path / "absent.png"), "--model", "digits")
    assert (status, out) == (1, "")
    assert "absent.png" in err


def test_weights_from_a_file_bring_their_class_count(capsys, digit_files, tmp_path):
    model = cf.create_model("digits", num_classes=3)
    cf.save_weights(model.state_dict(), tmp_path / "three.safetensors")
    weights = str(tmp_path / "three.safetensors")
    status, out, _ = run(capsys, "predict", digit_files[0], "--model", "digits", "--weights", weights, "--json")
    labels = {top["label"] for top in json.loads(out)["images"][0]["top"]}
    assert status == 0
    assert labels == {"class 0", "class 1", "class 2"}


def test_random_weights_say_so(capsys, digit_files):
    status, _, err = run(capsys, "predict", digit_files[0], "--model", "digits", "--weights", "random")
    assert status == 0
    assert "mean nothing" in err


def test_missing_weights_say_where_to_put_them(capsys, digit_files, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    status, out, err = run(capsys, "predict", digit_files[0], "--model", "tiny-p16")
    assert (status, out) == (2, "")
    assert "conformer-tiny-p16_3rdparty" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "x.png", "--weights", "absent.pth"],
        ["predict", "x.png", "--precision", "int8", "--weights", "random"],
        ["predict", "x.png", "--backend", "triton", "--weights", "random"],
        ["convert", "absent.pth", "out.safetensors"],
        ["tune", "--precision", "int8"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]),
)
def test_what_cannot_be_done_is_one_line_and_status_2(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert next(line for line in err.splitlines() if "random weights" not in line).startswith(
        f"conformer-fast {arguments[0]}: "
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["predict", "x.png", "--topk", "0"],
        ["cache", "burn"],
        ["convert", "a", "b", "--to", "onnx"],
        ["tune", "--batch", "0"],
    ],
    ids=str,
)
def test_wrong_arguments_are_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_info_says_what_auto_takes(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["auto"] == cf.compile(cf.create_model("digits")).reason
    assert set(facts["backends"]) == {"triton", "tensorrt", "openvino", "reference"}
    assert "digits" in facts["models"]
    assert main.main(["info"]) == 0
    assert f"auto: {facts['auto']}" in capsys.readouterr().out


def test_bench_measures_both(capsys):
    arguments = ["bench", "--models", "digits", "--batch", "1", "2", "--size", "64", "--rounds", "2"]
    status, out, _ = run(capsys, *arguments, "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["reference_ms"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["compiled_ms"] * 1e3)
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert len(out.splitlines()) == 2 + 2


@pytest.fixture
def tuned_batches(monkeypatch, tmp_path):
    """Pretends that there is a GPU, with room for 8 images. One problem is the same for every batch. Returns those
    batches that were tuned."""
    tuning = pytest.importorskip("conformer_fast.engines.triton.tuning")
    batches = []

    def tune(model, images, skip):
        assert (images.device.type, images.dtype, model.stem.weight.dtype) == ("cpu", torch.bfloat16, torch.bfloat16)
        B, _, H, W = images.shape
        if B > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        batches.append((model.config.embed_dim, B, H, W))
        rule, failed = tuning.Tile(64, 64, 32, 4, 3), {"pytorch": "RuntimeError: no"}
        slower = tuning.Tuned(f"attention B{B}", rule, "pytorch", {rule: 3e-6, "pytorch": 2e-6}, {})
        as_it_was = tuning.Tuned("heads", rule, rule, {rule: 5e-6}, failed)
        return {tuned.problem: tuned for tuned in (slower, as_it_was) if tuned.problem not in skip}

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(main, "choose", lambda backend, precision: (Settings(backend, precision), ""))
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    return batches


def test_tune_writes_and_prints_what_it_measured(capsys, tuned_batches, tmp_path):
    arguments = ["tune", "--models", "digits", "--precision", "bf16", "--size", "32", "--batch", "8", "1", "7"]
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert tuned_batches == [(64, 1, 32, 32), (64, 8, 32, 32)]
    lines = out.splitlines()
    assert lines[2].split() == ["attention", "B1", "64x64x32", "w4", "s3", "3.0", "pytorch", "2.0", "1.50x"]
    assert [line.split()[0] for line in lines[2:-1]] == ["attention", "heads", "attention"]
    (file,) = (tmp_path / "tuned").glob("*.json")
    assert "3 problems, 2 with" in lines[-1]
    assert lines[-1].endswith(str(file))
    choices = json.loads(file.read_text())["choices"]
    assert choices == {"attention B1": "pytorch", "attention B8": "pytorch", "heads": [64, 64, 32, 4, 3]}

    status, out, _ = run(capsys, *arguments, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["file"] == str(file)
    assert [entry["problem"] for entry in result["tuned"]] == ["attention B1", "heads", "attention B8"]
    assert result["tuned"][0]["gain"] == pytest.approx(1.5)
    assert result["tuned"][1]["dropped"] == {"pytorch": "RuntimeError: no"}


def test_tune_passes_over_a_batch_without_room(capsys, tuned_batches, tmp_path):
    arguments = ["tune", "--models", "digits", "--precision", "bf16", "--size", "32", "--batch", "9", "2", "--json"]
    status, out, err = run(capsys, *arguments)
    assert status == 1
    assert err == "conformer-fast tune: digits: the GPU has no room for a batch of 10\n"
    assert len(json.loads(out)["tuned"]) == 2


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_convert_writes_weights_that_load(capsys, tmp_path, dialect):
    model = cf.create_model("digits", weights="packaged")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "in.pth")
    target = tmp_path / "out.safetensors"
    status, out, _ = run(capsys, "convert", str(tmp_path / "in.pth"), str(target), "--to", dialect)
    assert status == 0
    assert f"official -> {dialect}" in out
    names = cf.read_state_dict(target)
    assert ("backbone.cls_token" in names) == (dialect == "mmpretrain")
    loaded = cf.create_model("digits", weights=target)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_cache_lists_and_clears(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    cf.compile(cf.create_model("digits"), backend="openvino", precision="fp32")(torch.zeros(1, 3, 64, 64))
    status, out, _ = run(capsys, "cache", "list", "--json")
    (entry,) = json.loads(out)
    assert status == 0
    assert entry["fields"]["height"] == 64
    assert entry["bytes"] == cache.entries()[0].size
    _, out, _ = run(capsys, "cache", "list")
    assert "1 engines" in out
    assert entry["key"][:8] in out
    status, out, _ = run(capsys, "cache", "clear")
    assert status == 0
    assert "freed" in out
    assert json.loads(run(capsys, "cache", "list", "--json")[1]) == []


def test_photographs_of_any_mode_go_through(capsys, tmp_path):
    path = tmp_path / "gray.jpg"
    Image.new("L", (300, 50), 128).save(path)
    status, out, _ = run(capsys, "predict", str(path), "--model", "digits", "--size", "96")
    assert status == 0
    assert out.startswith(str(path))
