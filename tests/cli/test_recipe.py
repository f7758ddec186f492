"""What a weights file says of its model, every command uses; what it does not say, a command says in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conformer_fast as cf

pytest.importorskip("sklearn")
DIGIT_PAIRS = Path(__file__).parents[1] / "data" / "digit_pairs.safetensors"
HERE = ("--backend", "reference")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ASSUMED = "the weights do not say their size, mean and std"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Forty pictures of two digits, in a folder a class."""
    from conformer_fast.datasets.digit_pairs import write_folder

    folder = tmp_path_factory.mktemp("pairs")
    write_folder(folder, "test", 40, seed=1)
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    """The digits' weights in a file that says nothing."""
    path = tmp_path_factory.mktemp("silent") / "digits.safetensors"
    cf.save_weights(cf.create_model("digits", weights="packaged").state_dict(), path)
    return path


def test_accuracy_needs_no_size(run_json, pairs, recwarn):
    arguments = ("evaluate", "--data", pairs, "--weights", DIGIT_PAIRS, *HERE, "--no-reference", "--workers", 0)
    status, result, _ = run_json(*arguments)
    assert (status, result["size"], result["evaluated"]) == (0, 64, 40)
    assert result["compiled"]["sum"]["top1"]["count"] >= 36
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_predict_shows_the_files_names_and_says_what_was_asked_for(run_json, pairs):
    (picture,) = list(pairs.glob("*/*.png"))[:1]
    _, result, _ = run_json("predict", picture, "--weights", DIGIT_PAIRS, *HERE, "--topk", 1)
    (guess,) = result["pictures"][0]["top"]
    assert guess["label"] == f"{guess['index']:02d}"
    with pytest.warns(UserWarning, match="images of 96 pixels, as asked for; the weights say 64"):
        run_json("predict", picture, "--weights", DIGIT_PAIRS, *HERE, "--size", 96)


def test_calibration_and_diff_read_pictures_as_the_model_does(run_json, digit_folder, silent, tmp_path, monkeypatch):
    half = cf.Recipe(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    cf.convert(silent, tmp_path / "half.safetensors", recipe=half)
    seen = []

    def calibrate(model, images, **options):
        seen.append(images[0])
        raise cf.ArgumentError("seen")

    def diff(model, images, *more, **options):
        seen.append(images)
        raise cf.ArgumentError("seen")

    monkeypatch.setattr(cf, "calibrate", calibrate)
    monkeypatch.setattr(cf, "diff", diff)
    from conformer_fast.cli.main import main

    weights, output = ["--weights", str(tmp_path / "half.safetensors")], ["-o", str(tmp_path / "out.json")]
    pictures = sorted(str(path) for path in digit_folder.rglob("*.png"))[:8]
    main(["calibrate", *weights, "--data", str(digit_folder), "--limit", "40", *output])
    labeled = ["--labels-from-folders", "--max-drop", "1"]
    main(["calibrate", *weights, "--data", str(digit_folder), "--limit", "40", *labeled, *output])
    main(["diff", *weights, "--images", *pictures, "--implementations", "reference"])
    expected = cf.load_batch(pictures, 32, recipe=half)
    assert len(seen) == 3
    assert all(bool((images == expected).all()) for images in seen)


def test_folders_are_found_by_the_models_names(run_json, digit_folder, silent, tmp_path, monkeypatch):
    """Whose order is another than that of the letters."""
    weights, data = tmp_path / "words.safetensors", tmp_path / "words"
    cf.convert(silent, weights, recipe=cf.Recipe(size=64, labels=WORDS))
    for number, word in enumerate(WORDS):
        if (digit_folder / str(number)).is_dir():
            shutil.copytree(digit_folder / str(number), data / word)
    arguments = ("--weights", weights, "--data", data)
    _, result, _ = run_json("evaluate", *arguments, *HERE, "--no-reference", "--workers", 0)
    assert result["compiled"]["sum"]["top1"]["count"] == result["evaluated"] > 10
    assert cf.evaluate(cf.compile(weights, backend="reference"), data, workers=0).compiled["sum"].top1 > 10
    seen = []
    monkeypatch.setattr(cf, "calibrate", lambda *_, labels, **__: seen.extend(labels) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_json("calibrate", *arguments, "--labels-from-folders", "--max-drop", 1, "-o", tmp_path / "out.json")
    numbers = [WORDS.index(path.parent.name) for path in sorted(data.rglob("*.png"))]
    assert sorted(seen) == sorted(numbers)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_what_is_assumed_is_one_line(command, digit_folder, silent):
    arguments = {
        "predict": [str(next(digit_folder.rglob("*.png"))), *HERE],
        "evaluate": ["--data", str(digit_folder), *HERE, "--workers", "0", "--limit", "2"],
    }[command]
    program = [sys.executable, "-m", "conformer_fast.cli", command, "--weights", str(silent), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if "assumed" in line]
    assert done.returncode == 0, done.stderr
    assert len(told) == 1, done.stderr
    assert told[0].startswith(f"conformer-fast: {ASSUMED}; assumed where not given: images of 64 pixels, ImageNet's")
    assert "warnings.warn" not in done.stderr
