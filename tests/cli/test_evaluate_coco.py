"""conformer-fast evaluate --coco."""

from __future__ import annotations

import pytest
from coco_samples import NAMES, SIZES, annotation_file, objects, write_json, write_pictures
from detector_samples import write_weights

import conformer_fast as cf
from conformer_fast.preprocessing.cpu import load_image

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="needs pycocotools")
REFERENCE = ("--backend", "reference", "--no-reference")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Pictures are fitted to 256 pixels, which is quick."""
    return write_weights(tmp_path_factory.mktemp("weights") / "detector.safetensors", size=256)


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def line(weights, folder, tmp_path):
    """A command whose annotations are what the reference finds, its masks of no pixels left out."""
    detector, found = cf.create_detector(weights=weights), {}
    for name in SIZES:
        (one,) = detector(*cf.fit_pictures([load_image(folder / name)], recipe=detector.recipe))
        found[name] = cf.Detections(*(part[one.masks.flatten(1).any(1)].detach() for part in one))
    file = write_json(tmp_path / "instances.json", annotation_file(found))
    return ["evaluate", "--coco", file, "--images", folder, "--weights", weights]


def test_for_programs_beside_the_reference(run_json, line, weights):
    pytest.importorskip("openvino")
    status, values, err = run_json(*line, "--precision", "fp32")
    assert (status, err) == (0, "")
    assert (values["weights"], values["backend"], values["precision"]) == (weights, "openvino", "fp32")
    assert (values["annotations"], values["images"]) == (str(line[2]), str(line[4]))
    assert (values["classes"], values["size"], values["published"]) == ("their names", 256, [])
    assert values["reference"]["box"]["ap"] > 0.98
    for kind in ("box", "mask"):
        assert values["agreement"][kind]["ap"] >= 0.99
        assert values["compiled"][kind]["ap"] == pytest.approx(values["reference"][kind]["ap"], abs=0.02)


def test_for_people(run, line):
    status, out, err = run(*line, *REFERENCE, "--limit", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].endswith("objects in 2 pictures; classes by their names")
    assert [words.split()[0] for words in lines[2:]] == ["AP", "box", "mask"]


def test_damage_is_status_1(run, run_json, line, folder):
    (folder / "a.png").write_bytes(b"no picture")
    status, values, _ = run_json(*line, *REFERENCE)
    assert status == 1
    assert [entry["picture"] for entry in values["damaged"]] == ["a.png"]
    assert (values["pictures"], values["images_run"]) == (3, 2)
    (folder / "a.png").unlink()
    status, out, err = run(*line, *REFERENCE)
    assert (status, out) == (2, "")
    assert "1 of 3 pictures of" in err


def test_it_goes_on(run, run_json, line, tmp_path):
    kept = tmp_path / "kept"
    _, first, _ = run_json(*line, *REFERENCE, "--resume", kept)
    _, again, _ = run_json(*line, *REFERENCE, "--resume", kept)
    assert (first["images_run"], again["images_run"]) == (3, 0)
    assert again == {**first, "images_run": 0}
    status, _, err = run(*line, *REFERENCE, "--resume", kept, "--limit", 1)
    assert status == 2
    assert "pictures was 3 and is 1" in err
    before = line[2].read_bytes()
    assert run(*line, *REFERENCE, "--resume", line[2])[0] == 2
    assert line[2].read_bytes() == before


@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
def test_in_8_bits(run, run_json, line, folder, weights, tmp_path):
    pytest.importorskip("openvino")
    detector = cf.create_detector(weights=weights)
    file = cf.calibrate(detector, folder, smoothquant=False).save(tmp_path / "int8.json")
    given = ("--precision", "int8", "--limit", 1)
    for option, value in (("--quantization", file), ("--calibration", folder)):
        status, values, _ = run_json(*line, *given, option, value)
        assert status == 0
        assert values["precision"] == "int8"
        assert 0 < values["agreement"]["box"]["ap"] < 1
    status, _, err = run(*line, *given)
    assert status == 2
    assert "give --calibration DIR" in err


def test_a_bundle(run, run_json, line, weights, tmp_path):
    pytest.importorskip("openvino")
    position = line.index("--weights")
    without = [*line[:position], *line[position + 2 :]]
    bundle = cf.compile(cf.create_detector(weights=weights), precision="fp32").save(tmp_path / "bundle")
    status, alone, _ = run_json(*without, "--bundle", bundle)
    assert (status, alone["bundle"], alone["reference"]) == (0, str(bundle), {})
    status, beside, _ = run_json(*line, "--bundle", bundle)  # with --weights beside its reference
    assert status == 0
    assert beside["compiled"] == alone["compiled"]
    assert beside["agreement"]["box"]["ap"] > 0.99
    status, _, err = run(*line, "--bundle", bundle, "--no-reference")
    assert (status, "with --no-reference the bundle runs alone; leave out --weights" in err) == (2, True)
    status, _, err = run(*without, "--bundle", bundle, "--reference")
    assert (status, "give the --weights that it was made from" in err) == (2, True)


def test_options_that_do_not_go_together(run, line, folder, weights):
    coco, without = line[2], line[:1]
    for arguments, message in (
        (
            [*line, "--model", "digits", "--batch", 2],
            "--coco evaluates detectors, one picture at a time; leave out --model, --batch",
        ),
        ([*line, "--skip-damaged"], "leave out --skip-damaged"),
        ([*line, "--workers", 0], "leave out --workers"),
        ([*line, "--size", 640, "--labels", coco], "leave out --labels, --size"),
        ([*line, "--key", coco], "a key is for a --bundle"),
        ([*line, "--calibration", folder, "--calibration-limit", 3], "leave out --calibration-limit"),
        ([*line, "--quantization", coco], "--quantization is for int8 and fp8"),
        ([*line, "--data", folder], "argument --data: not allowed with argument --coco"),
        (
            [*without, "--coco", coco],
            "--coco needs the folder of its pictures and a detector; give --images and --weights or --bundle",
        ),
        ([*without, "--coco", coco, "--images", folder], "give --weights"),
        ([*without, "--coco", "absent", "--images", folder], "there is no file absent"),
        ([*line[:3], "--images", "absent"], "there is no folder absent"),
        (
            [*without, "--data", folder, "--images", folder],
            "only --coco names pictures in a folder of their own; leave",
        ),
        ([*without, "--images", folder], "one of the arguments --data --coco is required"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err
        assert "Traceback" not in err


def test_annotations_of_something_else(run, line):
    write_json(line[2], annotation_file({"a.png": objects((1, 1, 5, 5))}, NAMES[:3]))
    status, out, err = run(*line, *REFERENCE)
    assert (status, out) == (2, "")
    assert "has 3 categories, the detector 5 classes" in err
    line[2].write_text("[" * 10_000)
    assert "no JSON" in run(*line, *REFERENCE)[2]
