"""conformer-fast calibrate."""

from __future__ import annotations

import tarfile

import pytest

import conformer_fast as cf
from conformer_fast.cli import calibrate
from conformer_fast.engines.registry import make
from conformer_fast.inference.quantization import usually_stored

pytest.importorskip("sklearn")
DIGITS = ("--model", "digits")


def test_it_writes_what_was_measured(run, run_json, digit_folder, tmp_path):
    file = tmp_path / "q.json"
    status, out, err = run("calibrate", *DIGITS, "--data", digit_folder, "--limit", 30, "-o", file)
    found = cf.Quantization.load(file)
    products = [name for name in found.ranges if not name.endswith((".addend", ".result"))]
    assert (status, err) == (0, "")
    assert out == f"{file}: {len(products)} products in int8, ranges of 30 images\n"
    assert len(products) == 37
    _, out, _ = run("calibrate", *DIGITS, "--data", digit_folder, "--limit", 1, "-o", file)
    assert out.endswith("products in int8, ranges of 1 image\n")
    assert found.precision == "int8"
    status, result, _ = run_json("calibrate", *DIGITS, "--data", digit_folder, "--limit", 30, "-o", file)
    assert status == 0
    assert (result["file"], result["precision"], result["images"]) == (str(file), "int8", 30)
    assert (result["products"], result["smoothed"]) == (products, [])


def test_again_it_reads_the_cache(run, digit_folder, tmp_path, monkeypatch):
    arguments = ["calibrate", *DIGITS, "--data", digit_folder, "--limit", 24, "--no-smoothquant"]
    assert run(*arguments, "-o", tmp_path / "q.json")[0] == 0
    monkeypatch.setattr("conformer_fast.calibration.counts.Observer.observe", lambda *_: pytest.fail("ran again"))
    assert run(*arguments, "-o", tmp_path / "again.json")[0] == 0
    assert (tmp_path / "q.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert run(*arguments, "--precision", "fp8", "-o", tmp_path / "fp8.json")[0] == 0
    ranges = cf.Quantization.load(tmp_path / "fp8.json").ranges
    assert ranges
    assert all(usually_stored(name, "fp8") for name in ranges)


@pytest.mark.parametrize("kind", ["folders", "file", "tar"])
def test_the_gate_with_labels(run, kind, digit_folder, tmp_path):
    data, labels = digit_folder, ["--labels-from-folders"]
    if kind == "file":
        names = tmp_path / "labels.txt"
        names.write_text("".join(f"{path.name} {path.parent.name}\n" for path in sorted(digit_folder.glob("*/*.png"))))
        labels = ["--labels", names]
    if kind == "tar":
        data = tmp_path / "digits.tar"
        with tarfile.open(data, "w") as archive:
            archive.add(digit_folder, arcname="digits")
    file = tmp_path / "q.json"
    status, out, err = run("calibrate", *DIGITS, "--data", data, *labels, "--max-drop", 0.5, "-o", file)
    assert (status, err) == (0, "")
    assert "int8, 40 images, at most 0.5 points down, fp32 has top-1 100.00%" in out
    assert "the gate holds" in out
    assert cf.Quantization.load(file).origin["gate"]["after"]["top1"] == 1


def test_the_gate_without_labels(run_json, digit_folder, tmp_path):
    arguments = ["--data", digit_folder, "--precision", "fp8", "--max-drop", 0.5]
    status, result, _ = run_json("calibrate", *DIGITS, *arguments, "-o", tmp_path / "q.json")
    report = result["gate"]
    assert status == 0
    assert (report["precision"], report["reference_top1"], report["holds"]) == ("fp8", None, True)
    assert report["after"]["agreement"] >= 0.995


def test_a_gate_that_does_not_hold_is_status_1(run, run_json, digit_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("conformer_fast.calibration.accuracy_gate._Judge.holds", lambda *given: False)
    arguments = ["--data", digit_folder, "--limit", 8, "--max-drop", 0.5, "-o", tmp_path / "q.json"]
    status, result, _ = run_json("calibrate", *DIGITS, *arguments)
    assert (status, result["gate"]["holds"]) == (1, False)


@pytest.mark.skipif(make("openvino").missing() is not None, reason="needs OpenVINO")
def test_the_gate_times_both(run, digit_folder, tmp_path, monkeypatch):
    """On the backend that was named."""
    monkeypatch.setattr("conformer_fast.calibration.accuracy_gate.SQNR_FLOOR", 50.0)  # so that the gate acts
    arguments = ["--data", digit_folder, "--limit", 8, "--max-drop", 0, "--timed", "openvino"]
    status, out, _ = run("calibrate", *DIGITS, *arguments, "-o", tmp_path / "q.json")
    assert status == 0
    before, after = cf.Quantization.load(tmp_path / "q.json").origin["gate"]["seconds"]
    assert f"measured ({before * 1e3:.1f} -> {after * 1e3:.1f} ms)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels-from-folders"], "without --max-drop there is no gate to use it; leave out --labels-from-folders"),
        (["--timed", "openvino"], "leave out --timed"),
        (["--max-drop", "-1"], "must be 0 or more percentage points, got -1.0"),
        (["--max-drop", "nan"], "must be 0 or more percentage points, got nan"),
        (["-o", "none/q.json"], "none does not exist; create it first"),
        (["-o", "."], ". is a folder; give the name of a file"),
        (["--timed", "reference", "--max-drop", "1"], "precision 'int8' is not available on backend 'reference'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(run, options, message, digit_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "model_of", lambda *_: pytest.fail("worked first"))
    status, _, err = run("calibrate", *DIGITS, "--data", digit_folder, "-o", "q.json", *options)
    assert status == 2
    assert message in err


def test_data_that_is_not_there(run, tmp_path):
    status, _, err = run("calibrate", *DIGITS, "--data", tmp_path / "none", "-o", tmp_path / "q.json")
    assert status == 2
    assert "there is no file or folder" in err
    assert list(tmp_path.iterdir()) == []
