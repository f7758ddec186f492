"""conformer-fast calibrate, and what the commands that take its file do with it."""

from __future__ import annotations

import json
import tarfile

import pytest

from conformer_fast.cli import calibrate, main
from conformer_fast.datasets.digits import digit_image, load_pixels
from conformer_fast.inference.quantization import load_quantization

pytest.importorskip("sklearn")
DIGITS = ("--model", "digits")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty digits, a folder a class."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = load_pixels()
    for index in range(40):
        (folder / str(labels[index])).mkdir(exist_ok=True)
        digit_image(pixels[index]).save(folder / str(labels[index]) / f"{index:02}.png")
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_writes_what_was_measured(capsys, pictures, tmp_path):
    file = tmp_path / "q.json"
    status, out, err = run(capsys, "calibrate", *DIGITS, "--data", pictures, "--images", 30, "-o", file)
    found = load_quantization(file)
    products = [name for name in found.ranges if not name.endswith(".addend")]
    assert (status, err) == (0, "")
    assert out == f"{file}: {len(products)} products in int8, ranges by mse of 30 images\n"
    assert len(products) == 37
    assert found.precision == "int8"


def test_another_method_reads_the_cache(capsys, pictures, tmp_path, monkeypatch):
    arguments = ["calibrate", *DIGITS, "--data", pictures, "-o", tmp_path / "q.json"]
    run(capsys, *arguments)
    monkeypatch.setattr("conformer_fast.calibration.calibrate.Observer.observe", lambda *_: pytest.fail("ran again"))
    status, out, _ = run(capsys, *arguments, "--method", "max", "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["method"], facts["images"], facts["precision"], facts["smoothed"]) == ("max", 40, "int8", [])
    assert load_quantization(facts["file"]).ranges.keys() >= set(facts["products"])


@pytest.mark.parametrize("kind", ["folders", "file", "tar"])
def test_the_gate_with_labels(kind, capsys, pictures, tmp_path):
    data, labels = pictures, ["--labels-from-folders"]
    if kind == "file":
        names = tmp_path / "labels.txt"
        names.write_text("".join(f"{path.name} {path.parent.name}\n" for path in sorted(pictures.glob("*/*.png"))))
        labels = ["--labels", names]
    if kind == "tar":
        data = tmp_path / "digits.tar"
        with tarfile.open(data, "w") as archive:
            archive.add(pictures, arcname="digits")
    file = tmp_path / "q.json"
    status, out, err = run(capsys, "calibrate", *DIGITS, "--data", data, *labels, "--max-drop", 0.5, "-o", file)
    assert (status, err) == (0, "")
    assert "int8, 40 images, at most 0.5 points down, fp32 has top-1 100.00%" in out
    assert "the gate holds" in out
    assert load_quantization(file).origin["gate"]["after"]["top1"] == 1


def test_the_gate_without_labels(capsys, pictures, tmp_path):
    arguments = ["--data", pictures, "--precision", "fp8", "--max-drop", 0.5, "--json"]
    status, out, _ = run(capsys, "calibrate", *DIGITS, *arguments, "-o", tmp_path / "q.json")
    report = json.loads(out)["gate"]
    assert status == 0
    assert (report["precision"], report["reference_top1"], report["holds"]) == ("fp8", None, True)
    assert report["after"]["agreement"] >= 0.995


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels-from-folders"], "--labels-from-folders is for the gate: give --max-drop too"),
        (["--timed", "openvino"], "--timed is for the gate"),
        (["--max-drop", "-1"], "--max-drop must be 0 or more percentage points, got -1.0"),
        (["-o", "none/q.json"], "none does not exist; create it first"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options, message, capsys, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "model_of", lambda *_: pytest.fail("worked first"))
    status, _, err = run(capsys, "calibrate", *DIGITS, "--data", pictures, "-o", "q.json", *options)
    assert status == 2
    assert message in err


def test_data_that_is_not_there(capsys, tmp_path):
    status, _, err = run(capsys, "calibrate", *DIGITS, "--data", tmp_path / "none", "-o", tmp_path / "q.json")
    assert status == 2
    assert "there is no folder" in err
    assert list(tmp_path.iterdir()) == []


def test_export_takes_the_file(capsys, pictures, tmp_path):
    """And builds the same graph as from the pictures; not for another precision."""
    pytest.importorskip("onnx")
    file = tmp_path / "q.json"
    run(capsys, "calibrate", *DIGITS, "--data", pictures, "-o", file)
    for name, calibration in {"a": file, "b": pictures}.items():
        arguments = ["export", *DIGITS, "--precision", "int8", "--calibration", calibration]
        assert run(capsys, *arguments, "-o", tmp_path / f"{name}.onnx")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    status, _, err = run(
        capsys, "export", *DIGITS, "--precision", "fp8", "--calibration", file, "-o", tmp_path / "c.onnx"
    )
    assert status == 2
    assert "the calibration was made for int8, not for 'fp8'" in err
