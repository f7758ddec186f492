"""conformer-fast detect."""

from __future__ import annotations

import pytest
from detector_samples import LABELS, smooth, write_weights
from PIL import Image

import conformer_fast as cf
from conformer_fast.deploy import detect

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "detector.safetensors")


@pytest.fixture
def pictures(tmp_path):
    for name, size in (("a.png", (60, 90)), ("b.jpg", (80, 50))):
        Image.fromarray(smooth(*size)).save(tmp_path / name)
    return [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]


def test_for_programs(run_json, weights, pictures):
    status, result, err = run_json(
        "detect", *pictures, "--weights", weights, "--min-score", 0.46, "--precision", "fp32"
    )
    assert (status, err) == (0, "")
    assert [picture["path"] for picture in result["pictures"]] == pictures
    assert (result["backend"], result["precision"]) == ("openvino", "fp32")
    first = result["pictures"][0]
    assert (first["width"], first["height"]) == (90, 60)
    for one in first["objects"]:
        assert one["label"] == LABELS[one["index"]]
        assert one["score"] >= 0.46
        x1, y1, x2, y2 = one["box"]
        assert 0 <= x1 < x2 <= 90
        assert 0 <= y1 < y2 <= 60
        assert sum(one["mask"]["counts"]) == 60 * 90
    fast = cf.compile(cf.create_detector(weights=weights), precision="fp32")
    (found,) = fast.predict(pictures[:1])
    assert first["objects"] == found.objects(0.46)
    assert 0 < len(first["objects"]) < len(found.objects())


@pytest.mark.slow
def test_for_people_and_drawn(run, weights, pictures, tmp_path):
    out = tmp_path / "drawn" / "of all"
    status, text, err = run("detect", *pictures, "--weights", weights, "--min-score", 0, "--save", out)
    assert (status, err) == (0, "")
    lines = text.splitlines()
    assert lines[0] == pictures[0]
    assert f"  drawn in {out / 'a.detected.png'}" in lines
    assert Image.open(out / "a.detected.png").size == (90, 60)
    assert Image.open(out / "b.detected.png").size == (50, 80)
    assert run("detect", pictures[0], "--weights", weights, "--min-score", 1)[1].splitlines() == [
        pictures[0],
        "  nothing with a score of 1 or more",
    ]
    status, text, err = run("detect", pictures[0], "--weights", weights, "--save", tmp_path / "one.jpg")
    assert (status, err) == (0, "")
    assert Image.open(tmp_path / "one.jpg").format == "JPEG"


def test_the_example(run, run_json, tmp_path):
    """It ships, and what the detector is sure of is right: training did not see it."""
    status, result, err = run_json("detect", "--example", "--min-score", 0.9, "--save", tmp_path / "found.png")
    assert (status, err) == (0, "")
    assert sorted(one["label"] for one in result["pictures"][0]["objects"]) == ["5", "7", "8"]
    assert result["pictures"][0]["saved"] == str(tmp_path / "found.png")
    assert Image.open(tmp_path / "found.png").size == (128, 128)
    for more, message in (
        (("a.png",), "not allowed with argument"),
        (("--weights", "x"), "leave out --weights"),
        (("--bundle", "x"), "leave out --bundle"),
    ):
        status, out, err = run("detect", "--example", *more)
        assert (status, out, message in err) == (2, "", True)
    status, _, err = run("detect", "--weights", "packaged")
    assert (status, "one of the arguments IMAGE --example is required" in err) == (2, True)


def test_a_bundle(run_json, weights, pictures, tmp_path):
    fast = cf.compile(cf.create_detector(weights=weights), precision="fp32")
    folder = fast.save(tmp_path / "bundle")
    status, result, err = run_json("detect", *pictures, "--bundle", folder, "--min-score", 0.46)
    assert (status, err) == (0, "")
    assert (result["weights"], result["bundle"], result["precision"]) == (None, str(folder), "fp32")
    for picture, found in zip(result["pictures"], fast.predict(pictures), strict=True):
        assert picture["objects"] == found.objects(0.46)


def test_each_picture_is_told_when_it_is_done(run, weights, pictures, monkeypatch):
    """Not at the end: a long run shows what it has."""
    whole = detect.detected

    def stopping(detector, pictures):
        yield next(whole(detector, pictures))
        raise KeyboardInterrupt

    monkeypatch.setattr(detect, "detected", stopping)
    _, text, _ = run("detect", *pictures, "--weights", weights)
    assert text.startswith(f"{pictures[0]}\n")


def test_a_damaged_picture_costs_only_itself(run_json, weights, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    status, result, err = run_json("detect", tmp_path / "bad.png", pictures[1], "--weights", weights)
    assert status == 1
    assert [picture["path"] for picture in result["pictures"]] == pictures[1:]
    assert "bad.png" in result["damaged"][0]["error"]
    assert "bad.png" in err


def test_what_cannot_be(run, weights, pictures, tmp_path):
    (tmp_path / "other").mkdir()
    Image.fromarray(smooth(20, 20)).save(tmp_path / "other" / "a.png")
    (tmp_path / "plain").touch()
    before = (tmp_path / "a.png").read_bytes()
    for arguments, message in (
        ([*pictures, "--weights", "absent.pth"], "no such file"),
        ([*pictures, "--weights", weights, "--save", tmp_path / "all.png"], "give --save one"),
        ([pictures[0], "--weights", weights, "--save", pictures[0]], "would be lost"),
        ([pictures[0], "--weights", weights, "--save", pictures[1]], "holds pictures"),
        (
            [pictures[0], tmp_path / "other" / "a.png", "--weights", weights, "--save", tmp_path / "d"],
            "rename one, or draw them",
        ),
        ([pictures[0], "--weights", weights, "--save", tmp_path / "plain"], "plain is a file, or below one; give"),
        ([pictures[0], "--weights", weights, "--save", tmp_path / "plain" / "x.png"], "plain is a file, not a folder"),
        ([pictures[0], "--weights", weights, "--save", f"{tmp_path}/d.png/"], "is a folder by its end and a file"),
        ([pictures[0], "--weights", weights, "--precision", "int8"], "takes its ranges from images"),
        ([pictures[0], "--weights", weights, "--min-score", "2"], "from 0 to 1"),
        ([pictures[0], "--weights", weights, "--backend", "tensorrt"], "tensorrt"),
        ([pictures[0], "--weights", weights, "--save", tmp_path / "o.webp"], "--save writes .png, .jpg"),
        ([pictures[0], "--weights", weights, "--save", "-"], "--save writes .png, .jpg"),
    ):
        status, _, err = run("detect", *arguments)
        assert status == 2
        assert message in err
        assert "Traceback" not in err
    assert (tmp_path / "a.png").read_bytes() == before
