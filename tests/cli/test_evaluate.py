"""conformer-fast evaluate, and --model left out where a checkpoint tells it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines.registry import make
from conformer_fast.model.reference import Conformer

pytest.importorskip("sklearn")
DIGITS = ("--model", "digits", "--backend", "reference", "--workers", "0")


@pytest.fixture
def data(digit_files, tmp_path) -> Path:
    """A folder of its own, which may be changed."""
    for path in map(Path, digit_files):
        target = tmp_path / "data" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "data"


def test_for_programs(run_json, digit_folder):
    status, values, err = run_json("evaluate", "--data", digit_folder, *DIGITS)
    assert (status, err) == (0, "")
    assert (values["model"], values["weights"], values["bundle"]) == ("digits", "packaged", None)
    assert (values["backend"], values["precision"], values["device"]) == ("reference", "fp32", "cpu")
    assert values["evaluated"] == 40
    assert values["compiled"]["sum"]["top1"]["count"] >= 39
    assert values["compiled"] == values["reference"]
    assert values["agreement"]["sum"]["percent"] == 100


def test_for_people(run, digit_folder):
    status, out, _ = run("evaluate", "--data", digit_folder, *DIGITS, "--no-reference", "--limit", 10)
    lines = out.splitlines()
    assert status == 0
    assert "10 of 10 pictures evaluated" in lines[1]
    assert lines[2].split() == ["top-1", "top-5"]
    assert [line.split()[0] for line in lines[3:6]] == ["conv", "trans", "sum"]


def test_every_kind_of_data_gives_the_same(run_json, digit_folder, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(digit_folder.glob("*/*.png"))}
    flat = tmp_path / "flat"
    flat.mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in pictures.items():
            (flat / name.replace("/", "_")).write_bytes(content)
            key = name.replace("/", "_").removesuffix(".png")
            for ending, part in ((".png", content), (".cls", name[:1].encode())):
                member = tarfile.TarInfo(key + ending)
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    (tmp_path / "labels.txt").write_text("".join(f"{name.replace('/', '_')} {name[0]}\n" for name in pictures))
    images = [{"bytes": content, "path": name} for name, content in pictures.items()]
    table = arrow.table({"image": images, "label": [int(name[0]) for name in pictures]})
    parquet.write_table(table, tmp_path / "x.parquet")
    kinds = {
        "folder": [digit_folder],
        "labels": [flat, "--labels", tmp_path / "labels.txt"],
        "tar": [tmp_path / "x.tar"],
        "parquet": [tmp_path / "x.parquet"],
    }
    found = {}
    for kind, arguments in kinds.items():
        status, values, _ = run_json("evaluate", "--data", *arguments, *DIGITS, "--no-reference")
        assert status == 0, kind
        found[kind] = values["compiled"]
    assert all(scores == found["folder"] for scores in found.values())


def test_damage_is_an_error_or_is_listed(run, run_json, data):
    (data / "3" / "cut.png").write_bytes(b"not an image")
    status, out, err = run("evaluate", "--data", data, *DIGITS)
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast evaluate: 3/cut.png: ")
    assert "skip_damaged leaves" in err
    status, values, _ = run_json("evaluate", "--data", data, *DIGITS, "--skip-damaged")
    assert status == 1
    assert [entry["picture"] for entry in values["damaged"]] == ["3/cut.png"]
    assert values["evaluated"] == 40


def test_an_evaluation_is_resumed(run, run_json, digit_folder, tmp_path):
    arguments = ["evaluate", "--data", digit_folder, *DIGITS, "--resume", tmp_path / "state.npz"]
    _, first, _ = run_json(*arguments)
    _, again, _ = run_json(*arguments)
    assert (first["images_run"], again["images_run"]) == (40, 0)
    assert again["compiled"] == first["compiled"]
    status, _, err = run(*arguments, "--batch", 7)
    assert status == 2
    assert "batch was 32 and is 7" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "absent"], "no file or folder absent"),
        (["--data", ".", "--workers", "-1"], "workers must be a whole number, at least 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(run, digit_folder, monkeypatch, arguments, text):
    monkeypatch.chdir(digit_folder)
    status, out, err = run("evaluate", "--model", "digits", "--backend", "reference", *arguments)
    assert (status, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


def test_a_size_beyond_all_memory_is_refused_by_name(run):
    status, _, err = run("evaluate", "--data", "absent", "--size", 1_000_000)
    assert status == 2
    assert "argument --size: must be at most 8750 pixels, got 1000000" in err


def test_data_must_be_named(run):
    status, _, err = run("evaluate", "--model", "digits")
    assert status == 2
    assert "--data" in err


@pytest.mark.skipif(make("openvino").missing() is not None, reason="needs OpenVINO")
def test_a_bundle_with_and_without_its_reference(run, run_json, digit_folder, tmp_path):
    cf.compile(cf.create_model("digits", "packaged"), backend="openvino", precision="fp32").save(tmp_path / "bundle")
    arguments = ["evaluate", "--data", digit_folder, "--bundle", tmp_path / "bundle", "--workers", 0]
    status, values, _ = run_json(*arguments)
    assert status == 0
    assert (values["size"], values["reference"], values["bundle"]) == (64, {}, str(tmp_path / "bundle"))
    _, values, _ = run_json(*arguments, "--model", "digits")
    assert values["agreement"]["sum"]["count"] == 40
    status, _, err = run(*arguments, "--reference")
    assert status == 2
    assert "give the --weights" in err
    status, _, err = run(*arguments, "--model", "digits", "--weights", "random")
    assert status == 2
    assert "the reference has other weights" in err


@pytest.mark.parametrize("option", ["--calibration", "--quantization"])
def test_how_to_quantize_reaches_compile(run, digit_folder, tmp_path, monkeypatch, option):
    """A folder as batches of images, a file as what calibration wrote."""
    known, seen, original = cf.Quantization("int8", {"conv_1.conv1": 2.0}), [], cf.compile

    def compile(model, *, backend, precision, quantization):
        seen.append(quantization)
        return original(model, backend="reference")

    monkeypatch.setattr(cf, "compile", compile)
    given = (
        [digit_folder, "--calibration-limit", 20] if option == "--calibration" else [known.save(tmp_path / "q.json")]
    )
    arguments = ["--data", digit_folder, "--model", "digits", "--backend", "openvino", "--workers", 0, "--limit", 4]
    assert run("evaluate", *arguments, "--precision", "int8", option, *given)[0] == 0
    if option == "--calibration":
        assert [tuple(images.shape) for images in seen[0]] == [(8, 3, 64, 64), (8, 3, 64, 64), (4, 3, 64, 64)]
    else:
        assert seen == [known]


# The model that a checkpoint implies


def test_a_checkpoint_tells_its_model(run_json, digit_folder, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors", "mmpretrain")
    arguments = ["--weights", tmp_path / "some.safetensors", "--backend", "reference", "--workers", 0]
    status, values, _ = run_json("evaluate", "--data", digit_folder, *arguments)
    assert (status, values["model"]) == (0, "digits")
    assert values["compiled"]["sum"]["top1"]["count"] >= 39


def test_a_checkpoint_of_sizes_without_a_name(run_json, digit_folder, tmp_path):
    torch.manual_seed(0)
    config = cf.ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=1, depth=3, mlp_ratio=1, num_classes=10)
    cf.save_weights(Conformer(config).state_dict(), tmp_path / "own.safetensors")
    arguments = ["--weights", tmp_path / "own.safetensors", "--backend", "reference", "--workers", 0, "--size", 32]
    with pytest.warns(UserWarning, match="do not tell the number of attention heads"):
        status, values, _ = run_json("evaluate", "--data", digit_folder, *arguments, "--limit", 4)
    assert (status, values["model"]) == (0, None)


def test_weights_that_are_no_conformers(run, digit_folder, tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    status, _, err = run("evaluate", "--data", digit_folder, "--weights", tmp_path / "other.pth")
    assert status == 2
    assert "other.pth: not a Conformer's weights" in err


def test_a_model_that_is_named_must_fit_the_weights(run, digit_folder, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors")
    arguments = ["--weights", tmp_path / "some.safetensors", "--model", "tiny-p16"]
    status, _, err = run("evaluate", "--data", digit_folder, *arguments)
    assert status == 2
    assert "the file has" in err
