"""conformer-fast evaluate, and --model left out where a checkpoint tells it."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch

import conformer_fast as cf
from conformer_fast.cli import evaluate, main
from conformer_fast.datasets.digits import digit_image, load_pixels, split_indices
from conformer_fast.engines.registry import BACKENDS
from conformer_fast.model.reference import Conformer

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Four held-out digits a class: name -> PNG file."""
    pixels, labels = load_pixels()
    found: dict[str, bytes] = {}
    for index in split_indices(labels)[1][:120]:
        name = f"{labels[index]}/{index}.png"
        if sum(other.startswith(name[0]) for other in found) < 4:
            file = io.BytesIO()
            digit_image(pixels[index]).save(file, "PNG")
            found[name] = file.getvalue()
    assert len(found) == 40
    return found


@pytest.fixture
def data(pictures, tmp_path):
    for name, content in pictures.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


DIGITS = ("--model", "digits", "--backend", "reference", "--workers", "0")


def test_evaluate_prints_for_programs(capsys, data):
    status, out, err = run(capsys, "--data", data, *DIGITS, "--json")
    values = json.loads(out)
    assert (status, err) == (0, "")
    assert (values["model"], values["weights"], values["bundle"]) == ("digits", "packaged", None)
    assert values["evaluated"] == 40
    assert values["compiled"]["sum"]["top1"]["count"] >= 39
    assert values["compiled"] == values["reference"]
    assert values["agreement"]["sum"]["percent"] == 100


def test_evaluate_prints_for_people(capsys, data):
    status, out, _ = run(capsys, "--data", data, *DIGITS, "--no-reference", "--limit", 10)
    lines = out.splitlines()
    assert status == 0
    assert "10 of 10 pictures evaluated" in lines[1]
    assert lines[2].split() == ["top-1", "top-5"]
    assert [line.split()[0] for line in lines[3:6]] == ["conv", "trans", "sum"]


def test_every_kind_of_data_gives_the_same(capsys, data, pictures, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

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
        "folder": [data],
        "labels": [flat, "--labels", tmp_path / "labels.txt"],
        "tar": [tmp_path / "x.tar"],
        "parquet": [tmp_path / "x.parquet"],
    }
    found = {}
    for kind, arguments in kinds.items():
        status, out, _ = run(capsys, "--data", *arguments, *DIGITS, "--json", "--no-reference")
        assert status == 0, kind
        found[kind] = json.loads(out)["compiled"]
    assert all(scores == found["folder"] for scores in found.values())


def test_damage_is_an_error_or_is_listed(capsys, data):
    (data / "3" / "cut.png").write_bytes(b"not an image")
    status, out, err = run(capsys, "--data", data, *DIGITS)
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast evaluate: 3/cut.png: ")
    assert "--skip-damaged" in err
    status, out, _ = run(capsys, "--data", data, *DIGITS, "--skip-damaged", "--json")
    assert status == 1
    assert [entry["picture"] for entry in json.loads(out)["damaged"]] == ["3/cut.png"]
    assert json.loads(out)["evaluated"] == 40


def test_an_evaluation_is_resumed(capsys, data, tmp_path):
    arguments = ["--data", data, *DIGITS, "--resume", tmp_path / "state.npz", "--json"]
    _, first, _ = run(capsys, *arguments)
    _, again, _ = run(capsys, *arguments)
    assert json.loads(first)["images_run"] == 40
    assert json.loads(again)["images_run"] == 0
    assert json.loads(again)["compiled"] == json.loads(first)["compiled"]
    status, _, err = run(capsys, *arguments, "--batch", 7)
    assert status == 2
    assert "batch was 32 and is 7" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "absent"], "no file or folder absent"),
        (["--data", ".", "--bundle", "x", "--precision", "bf16"], "leave out --precision"),
        (["--data", ".", "--bundle", "x", "--calibration", "y"], "leave out --calibration"),
        (["--data", ".", "--workers", "-1"], "workers must be at least 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(capsys, data, arguments, text):
    arguments = [str(data) if argument == "." else argument for argument in arguments]
    given = [] if "--bundle" in arguments else ["--model", "digits", "--backend", "reference"]
    status, out, err = run(capsys, *given, *arguments)
    assert (status, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


def test_data_must_be_named(capsys):
    with pytest.raises(SystemExit):
        main.main(["evaluate", "--model", "digits"])
    assert "--data" in capsys.readouterr().err


def test_a_bundle_with_and_without_its_reference(capsys, data, tmp_path):
    if BACKENDS["openvino"].missing():
        pytest.skip("openvino is not installed")
    cf.compile(cf.create_model("digits", "packaged"), backend="openvino", precision="fp32").save(tmp_path / "bundle")
    arguments = ["--data", data, "--bundle", tmp_path / "bundle", "--workers", 0]
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    assert (json.loads(out)["size"], json.loads(out)["reference"]) == (64, {})
    _, out, _ = run(capsys, *arguments, "--model", "digits", "--json")
    assert json.loads(out)["agreement"]["sum"]["count"] == 40
    status, _, err = run(capsys, *arguments, "--reference")
    assert status == 2
    assert "give the --weights" in err
    status, _, err = run(capsys, *arguments, "--model", "digits", "--weights", "random")
    assert status == 2
    assert "other weights than the reference's" in err


@pytest.mark.parametrize("given", ["folder", "file"])
def test_calibration_reaches_compile(capsys, data, tmp_path, monkeypatch, given):
    """A folder as batches of images, a file as what calibration wrote."""
    from conformer_fast.inference.quantization import Quantization, save_quantization

    known = Quantization("int8", {"conv_1.conv1": 2.0})
    seen = []

    def compile(model, calibration=None, **settings):
        seen.append(calibration)
        return cf.compile(model, backend="reference")

    monkeypatch.setattr(evaluate, "compile", compile)
    source = data if given == "folder" else save_quantization(known, tmp_path / "q.json")
    arguments = ["--data", data, *DIGITS, "--precision", "int8", "--calibration", source, "--calibration-images", 20]
    assert run(capsys, *arguments)[0] == 0
    if given == "folder":
        assert [tuple(images.shape) for images in seen[0]] == [(8, 3, 64, 64), (8, 3, 64, 64), (4, 3, 64, 64)]
    else:
        assert seen == [known]


# The model that a checkpoint implies


def test_a_checkpoint_tells_its_model(capsys, data, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors", "mmpretrain")
    arguments = ["--weights", tmp_path / "some.safetensors", "--backend", "reference", "--workers", 0, "--json"]
    status, out, _ = run(capsys, "--data", data, *arguments)
    assert status == 0
    assert json.loads(out)["model"] == "digits"
    assert json.loads(out)["compiled"]["sum"]["top1"]["count"] >= 39


def test_a_checkpoint_of_sizes_without_a_name(capsys, data, tmp_path):
    torch.manual_seed(0)
    config = cf.ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=1, depth=3, mlp_ratio=1, num_classes=10)
    cf.save_weights(Conformer(config).state_dict(), tmp_path / "own.safetensors")
    arguments = ["--weights", tmp_path / "own.safetensors", "--backend", "reference", "--workers", 0, "--size", 32]
    with pytest.warns(UserWarning, match="do not tell the number of attention heads"):
        status, out, _ = run(capsys, "--data", data, *arguments, "--json", "--limit", 4)
    assert status == 0
    assert json.loads(out)["model"] is None


def test_other_commands_read_it_too(capsys, data, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors")
    arguments = ["predict", str(next(data.glob("7/*.png"))), "--weights", str(tmp_path / "some.safetensors"), "--json"]
    assert main.main(arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["model"] == "digits"
    assert values["images"][0]["top"][0]["label"] == "7"


def test_weights_that_are_no_conformers(capsys, data, tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    status, _, err = run(capsys, "--data", data, "--weights", tmp_path / "other.pth")
    assert status == 2
    assert "other.pth: not a Conformer's weights" in err


def test_a_model_that_is_named_must_fit_the_weights(capsys, data, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors")
    status, _, err = run(capsys, "--data", data, "--weights", tmp_path / "some.safetensors", "--model", "tiny-p16")
    assert status == 2
    assert "the file has" in err
