"""conformer-fast predict, with models and with bundles."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

import conformer_fast as cf

DIGITS = ("--model", "digits")


@pytest.fixture
def bundle(tmp_path):
    """The digits model, as saved for OpenVINO."""
    pytest.importorskip("openvino")
    fast = cf.compile(cf.create_model("digits", weights="packaged"), backend="openvino", precision="fp32")
    return fast.save(tmp_path / "digits-engine")


def labels(result: dict) -> list[str]:
    return [picture["top"][0]["label"] for picture in result["pictures"]]


def test_the_digits_are_recognized(run_json, digit_files):
    status, result, err = run_json("predict", *digit_files[:10], *DIGITS, "--topk", 3)
    assert (status, err) == (0, "")
    assert [picture["path"] for picture in result["pictures"]] == digit_files[:10]
    assert labels(result) == [str(digit) for digit in range(10)]
    assert all(len(picture["top"]) == 3 for picture in result["pictures"])
    probabilities = [guess["probability"] for guess in result["pictures"][0]["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert (result["model"], result["weights"], result["bundle"]) == ("digits", "packaged", None)
    fast = cf.compile(cf.create_model("digits"))
    assert {name: result[name] for name in ("backend", "precision", "device")} == {
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "device": str(fast.device),
    }


def test_the_example(run, run_json):
    """It ships, and is right: training did not see it."""
    status, result, err = run_json("predict", "--example", "--topk", 1)
    assert (status, err) == (0, "")
    assert labels(result) == ["7"]
    assert result["pictures"][0]["top"][0]["probability"] > 0.99
    assert (result["model"], result["weights"]) == ("digits", "packaged")
    for more, message in (
        (("a.png",), "not allowed with argument"),
        (("--model", "small-p16"), "--example runs a model that ships; leave out --model"),
        (("--bundle", "x"), "leave out --bundle"),
        (("--size", 32), "leave out --size"),
    ):
        status, out, err = run("predict", "--example", *more)
        assert (status, out) == (2, "")
        assert message in err
    status, out, err = run("predict")
    assert (status, out) == (2, "")
    assert "one of the arguments IMAGE --example is required" in err


def test_folders_and_patterns(run, run_json, digit_files, digit_folder, tmp_path, monkeypatch):
    """In the order of their names, each as if it had been named."""
    monkeypatch.chdir(digit_folder)
    files = sorted(digit_files, key=lambda path: path.split("/"))
    for given, expected in (
        ([digit_folder], files),
        ([f"{digit_folder}/[34]/*.png"], [path for path in files if Path(path).parent.name in "34"]),
        ([digit_files[0], f"{digit_folder}/3"], [digit_files[0], *(p for p in files if Path(p).parent.name == "3")]),
        (["**/00.png"], ["0/00.png"]),
    ):
        status, result, err = run_json("predict", *given, *DIGITS, "--topk", 1)
        assert (status, err) == (0, "")
        assert [picture["path"] for picture in result["pictures"]] == [str(path) for path in expected]
    named = tmp_path / "a[1]*.png"  # a file's own name is no pattern
    Image.open(digit_files[0]).save(named)
    assert run_json("predict", named, *DIGITS)[1]["pictures"][0]["path"] == str(named)
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "empty", "there are no pictures below"),
        ("no/*.png", "no file is called like no/*.png; name where the pictures are"),
    ):
        status, out, err = run("predict", given, *DIGITS)
        assert (status, out) == (2, "")
        assert message in err


@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_it_prints_for_people(run, digit_files, backend):
    status, out, err = run("predict", digit_files[7], *DIGITS, "--backend", backend, "--topk", 99)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == digit_files[7]
    assert lines[1].split()[1:] == ["7", "(7)"]
    assert len(lines) == 1 + 10


def test_a_damaged_picture_costs_only_itself(run, run_json, digit_files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    arguments = [digit_files[3], bad, digit_files[5], *DIGITS]
    status, result, err = run_json("predict", *arguments)
    assert status == 1
    assert labels(result) == ["3", "5"]
    (damaged,) = result["damaged"]
    assert damaged["path"] == str(bad)
    assert err == f"conformer-fast predict: {damaged['error']}\n"
    status, out, people = run("predict", *arguments)
    assert (status, people) == (1, err)
    assert str(bad) not in out


def test_a_label_does_not_reach_the_terminal_as_it_is(run, digit_files, tmp_path):
    model = cf.create_model("digits", "packaged")
    recipe = cf.Recipe(size=64, labels=tuple(f"\x1b[2J {index}" for index in range(10)))
    cf.save_weights(model.state_dict(), tmp_path / "w.safetensors", recipe=recipe)
    _, out, _ = run("predict", digit_files[3], "--weights", tmp_path / "w.safetensors", "--model", "digits")
    assert r"\x1b[2J 3 (3)" in out.splitlines()[1]
    assert "\x1b" not in out


def test_a_name_does_not_reach_the_terminal_as_it_is(run, run_json, digit_files, tmp_path):
    for name, content in (("a\x1b[2J\nb.png", Path(digit_files[3]).read_bytes()), ("\x1b[2J\nc.png", b"no picture")):
        (tmp_path / name).write_bytes(content)
    paths = sorted(tmp_path.iterdir())
    _, out, err = run("predict", *paths, *DIGITS)
    assert all(letter.isprintable() for letter in (out + err).replace("\n", ""))
    assert out.splitlines()[0].endswith(r"a\x1b[2J\nb.png")
    assert len(err.splitlines()) == 1
    _, result, _ = run_json("predict", *paths, *DIGITS)
    assert [picture["path"] for picture in result["pictures"]] == [str(tmp_path / "a\x1b[2J\nb.png")]


def test_damaged_metadata_is_no_news(run, tmp_path):
    """Pillow warns of it without naming the picture, whose pixels are all there."""
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-8])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run("predict", tmp_path / "a.jpg", *DIGITS)[::2] == (0, "")
    assert caught == []
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        Image.open(tmp_path / "a.jpg").getexif()


def test_only_damaged_pictures(run, tmp_path):
    (tmp_path / "empty.png").touch()
    status, out, err = run("predict", tmp_path / "empty.png", tmp_path / "absent.png", *DIGITS)
    assert (status, out) == (1, "")
    assert "empty.png" in err
    assert "absent.png" in err


def test_weights_from_a_file_bring_their_class_count(run_json, digit_files, tmp_path):
    cf.save_weights(cf.create_model("digits", num_classes=3).state_dict(), tmp_path / "three.safetensors")
    status, result, _ = run_json("predict", digit_files[0], *DIGITS, "--weights", tmp_path / "three.safetensors")
    assert status == 0
    assert {guess["label"] for guess in result["pictures"][0]["top"]} == {"class 0", "class 1", "class 2"}


def test_a_checkpoint_tells_its_model(run_json, digit_files, tmp_path):
    cf.save_weights(cf.create_model("digits", "packaged").state_dict(), tmp_path / "some.safetensors")
    status, result, _ = run_json("predict", digit_files[7], "--weights", tmp_path / "some.safetensors")
    assert (status, result["model"]) == (0, "digits")
    assert labels(result) == ["7"]


def test_random_weights_say_so(run, digit_files):
    status, _, err = run("predict", digit_files[0], *DIGITS, "--weights", "random")
    assert status == 0
    assert "mean nothing" in err


def test_missing_weights_say_where_to_put_them(run, digit_files, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    for weights in ([], ["--weights", "pretrained"]):
        status, out, err = run("predict", digit_files[0], "--model", "tiny-p16", *weights)
        assert (status, out) == (2, "")
        assert "conformer-tiny-p16_3rdparty" in err


def test_pictures_of_any_mode_go_through(run, tmp_path):
    Image.new("L", (300, 50), 128).save(tmp_path / "gray.jpg")
    status, out, _ = run("predict", tmp_path / "gray.jpg", *DIGITS, "--size", 96)
    assert status == 0
    assert out.startswith(str(tmp_path / "gray.jpg"))


@pytest.mark.parametrize("given", ["--calibration", "--quantization"])
def test_8_bits(run, run_json, digit_files, digit_folder, tmp_path, given):
    pytest.importorskip("openvino")
    source = digit_folder
    if given == "--quantization":
        source = tmp_path / "q.json"
        assert run("calibrate", *DIGITS, "--data", digit_folder, "--limit", 16, "-o", source)[0] == 0
    arguments = [*digit_files[:10], *DIGITS, "--backend", "openvino", "--precision", "int8", given, source]
    status, result, _ = run_json("predict", *arguments)
    assert (status, result["precision"]) == (0, "int8")
    assert labels(result) == [str(digit) for digit in range(10)]


def test_a_quantization_for_another_precision_is_refused_before_any_work(run, tmp_path, monkeypatch):
    cf.Quantization("fp8", {}).save(tmp_path / "q.json")
    monkeypatch.setattr(cf, "create_model", lambda *_, **__: pytest.fail("worked first"))
    status, _, err = run("predict", "x.png", "--precision", "int8", "--quantization", tmp_path / "q.json")
    assert status == 2
    assert "q.json was made for fp8, not for int8" in err


# --bundle


def test_a_bundle(run_json, bundle, digit_files):
    status, result, err = run_json("predict", *digit_files[:10], "--bundle", bundle, "--topk", 2)
    assert (status, err) == (0, "")
    assert labels(result) == [str(digit) for digit in range(10)]
    assert (result["model"], result["weights"], result["bundle"]) == (None, None, str(bundle))
    assert [result[name] for name in ("backend", "precision", "device")] == ["openvino", "fp32", "cpu"]
    _, compiled, _ = run_json("predict", *digit_files[:10], *DIGITS, "--backend", "openvino", "--topk", 2)
    for ours, theirs in zip(result["pictures"], compiled["pictures"], strict=True):
        assert [guess["index"] for guess in ours["top"]] == [guess["index"] for guess in theirs["top"]]


def test_a_bundle_for_people(run, bundle, digit_files):
    status, out, err = run("predict", digit_files[3], "--bundle", bundle, "--size", 96)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == digit_files[3]
    assert len(out.splitlines()) == 1 + 5


def test_the_labels_are_the_bundles(run_json, tmp_path, digit_files):
    pytest.importorskip("openvino")
    fast = cf.compile(cf.create_model("digits", num_classes=3), backend="openvino", precision="fp32")
    folder = fast.save(tmp_path / "three", labels=["a", "b", "c"])
    _, result, _ = run_json("predict", digit_files[0], "--bundle", folder)
    assert {guess["label"] for guess in result["pictures"][0]["top"]} == {"a", "b", "c"}


def test_a_bundle_without_scores(run, tmp_path, digit_files):
    pytest.importorskip("openvino")
    model = cf.create_model("digits", weights="packaged", features_only=True)
    folder = cf.compile(model, backend="openvino", precision="fp32").save(tmp_path / "features")
    status, out, err = run("predict", digit_files[0], "--bundle", folder)
    assert (status, out) == (2, "")
    assert "returns 1.map, 2.map, 3.map, 3.tokens; predict needs conv_logits, trans_logits or logits" in err


def test_a_damaged_bundle(run, bundle, digit_files):
    (bundle / "labels.txt").write_text("0\n" * 10)
    status, out, err = run("predict", digit_files[0], "--bundle", bundle)
    assert (status, out) == (2, "")
    assert err.startswith(f"conformer-fast predict: {bundle / 'labels.txt'} is not the file")
    assert err.count("\n") == 1


def test_no_bundle(run, tmp_path, digit_files):
    status, _, err = run("predict", digit_files[0], "--bundle", tmp_path)
    assert status == 2
    assert "manifest.json cannot be read" in err


def test_a_key(run, digit_files, tmp_path):
    pytest.importorskip("openvino")
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(b"a secret of 24 bytes ...")
    other.write_bytes(b"another key of this size")
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="openvino")
    fast.save(tmp_path / "bundle", key=b"a secret of 24 bytes ...")
    arguments = ["predict", digit_files[3], "--bundle", tmp_path / "bundle", "--topk", 1, "--key"]
    status, out, _ = run(*arguments, key)
    assert status == 0
    assert "3 (3)" in out
    status, _, err = run(*arguments, other)
    assert status == 2
    assert "is not signed with this key" in err
