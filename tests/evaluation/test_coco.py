"""evaluate_detector(): COCO's precision where it is known beforehand, whatever the damage and the interruptions."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys

import pytest
import torch
from coco_samples import NAMES, SIZES, Pretended, annotation_file, objects, write_json, write_pictures
from detector_samples import SMALL, filled, small

import conformer_fast as cf
from conformer_fast.evaluation.average_precision import Precision, average_precision
from conformer_fast.evaluation.coco import evaluate_detector
from conformer_fast.evaluation.published import COCO_PICTURES, detector_published_for
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.detector.config import detector_config
from conformer_fast.preprocessing.cpu import load_image

pytest.importorskip("pycocotools", reason="needs pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:the weights do not say it; assumed. ImageNet's normalization")
RIGHT = {
    "a.png": objects((10, 2, 20, 12), (50, 0, 60, 10), (100, 5, 115, 20)),
    "deep/b.png": objects((3, 100, 20, 140), label=1, name="deep/b.png"),
    "c.png": objects((0, 0, 9, 9), (200, 4, 240, 20), label=1, name="c.png"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def file(tmp_path):
    return write_json(tmp_path / "instances.json", annotation_file(RIGHT))


@pytest.fixture(scope="module")
def seen(folder):
    """What the reference finds in each picture."""
    found = {}
    for name in SIZES:
        with torch.inference_mode():
            (found[name],) = small()(*cf.fit_pictures([load_image(folder / name)]))
    return found


def close(found: Precision, **expected: float | None) -> bool:
    values = dataclasses.asdict(found)
    return all(values[name] == (None if value is None else pytest.approx(value)) for name, value in expected.items())


def test_its_own_detections_are_all_found(folder, seen, tmp_path):
    """Masks of which nothing is left are of no object."""
    truth = {name: cf.Detections(*(part[one.masks.flatten(1).any(1)] for part in one)) for name, one in seen.items()}
    found = evaluate_detector(small(), write_json(tmp_path / "i.json", annotation_file(truth)), folder)
    assert found.compiled["box"].ap > 0.98  # the other detections are surplus
    assert found.compiled["mask"].ap > 0.98
    assert (found.backend, found.precision, found.device) == ("reference", "fp32", "cpu")
    assert (found.pictures, found.images_run, found.damaged) == (3, 3, {})
    assert (found.reference, found.agreement, found.published) == ({}, {}, ())
    assert found.objects == sum(len(one.boxes) for one in truth.values()) > 20


def test_fp32_compiled_finds_what_the_reference_finds(folder, seen, tmp_path):
    pytest.importorskip("openvino")
    fast = cf.compile(small(), precision="fp32")
    found = []
    for name in SIZES:
        found += fast(*cf.fit_pictures([load_image(folder / name)]))
    same = average_precision(found, [*seen.values()])
    assert same["box"].ap >= 0.99
    assert same["mask"].ap >= 0.99
    file = write_json(tmp_path / "i.json", annotation_file(seen))
    whole = evaluate_detector(fast, file, folder, reference=fast.reference)
    assert whole.agreement == same
    assert whole.reference == evaluate_detector(Pretended(seen), file, folder).compiled
    assert whole.reason == fast.reason


def test_what_is_off_is_found_at_smaller_overlaps_only(folder, file):
    """10 x 10 pixels, 2 beside: they share 80 of 120, which is enough at 0.5, 0.55, 0.6 and 0.65."""
    one = {"a.png": objects((10, 2, 20, 12))}
    write_json(file, annotation_file(one))
    found = evaluate_detector(Pretended({"a.png": objects((12, 2, 22, 12))}), file, folder)
    for kind in ("box", "mask"):
        assert close(found.compiled[kind], ap=0.4, ap50=1, ap75=0, ap_small=0.4, ap_medium=None, ap_large=None)
    assert close(evaluate_detector(Pretended(one), file, folder).compiled["box"], ap=1, ap75=1)


def test_surplus_counts_by_its_score_and_half_of_what_is_there(folder, file):
    right, wrong = (10, 2, 20, 12), (300, 2, 310, 12)
    write_json(file, annotation_file({"a.png": objects(right)}))
    for scores, expected in (((0.9, 0.8), 1.0), ((0.8, 0.9), 0.5)):
        found = evaluate_detector(Pretended({"a.png": objects(right, wrong, scores=scores)}), file, folder)
        assert close(found.compiled["box"], ap=expected)
    write_json(file, annotation_file({"a.png": objects(right, wrong)}))
    found = evaluate_detector(Pretended({"a.png": objects(right)}), file, folder)
    assert close(found.compiled["box"], ap=51 / 101)  # of 101 recalls from 0 to 1, those up to a half


def test_masks_are_judged_by_their_pixels(folder, file):
    """Of the right box's mask the left half is there, and as polygons the same as in run lengths."""
    one = objects((10, 2, 20, 12))
    half = one.masks.clone()
    half[:, :, 15:] = False
    value = annotation_file({"a.png": one})
    for outline in (value["annotations"][0]["segmentation"], [[10, 2, 20, 2, 20, 12, 10, 12]]):
        value["annotations"][0]["segmentation"] = outline
        write_json(file, value)
        found = evaluate_detector(Pretended({"a.png": one}), file, folder)
        assert close(found.compiled["mask"], ap=1)
        found = evaluate_detector(Pretended({"a.png": one._replace(masks=half)}), file, folder)
        assert close(found.compiled["box"], ap=1)
        assert close(found.compiled["mask"], ap=0.1, ap50=1)


@pytest.mark.parametrize("crowd", [0, 1])
def test_what_lies_in_a_crowd_is_not_counted(folder, file, crowd):
    value = annotation_file({"a.png": objects((10, 2, 20, 12), (200, 0, 400, 20))})
    value["annotations"][1]["iscrowd"] = crowd
    write_json(file, value)
    inside = objects((10, 2, 20, 12), (250, 2, 260, 12), scores=(0.8, 0.9))
    found = evaluate_detector(Pretended({"a.png": inside}), file, folder)
    expected = 1.0 if crowd else 0.5 * 51 / 101
    assert close(found.compiled["box"], ap=expected)
    assert close(found.compiled["mask"], ap=expected)


def test_without_masks(folder, file):
    value = annotation_file(RIGHT)
    for one in value["annotations"]:
        del one["segmentation"]
    write_json(file, value)
    fast = Pretended({name: one._replace(masks=None) for name, one in RIGHT.items()}, small(masks=False))
    found = evaluate_detector(fast, file, folder, reference=small(masks=False))
    assert found.compiled.keys() == found.agreement.keys() == {"box"}
    assert close(found.compiled["box"], ap=1)
    with pytest.raises(cf.DatasetError, match="segmentation must be polygons"):
        evaluate_detector(Pretended(RIGHT), file, folder)


# Classes


@pytest.fixture(scope="module")
def named():
    detector = filled(SMALL)
    detector.recipe = cf.Recipe(labels=NAMES, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return detector


def test_classes_are_matched_by_name_or_by_the_order_of_ids(folder, file, named):
    fast = Pretended(RIGHT, named)
    assert evaluate_detector(fast, file, folder).classes == "their names"
    value = annotation_file(RIGHT)
    turned = copy.deepcopy(value)
    for one in (*turned["categories"], *turned["annotations"]):  # the same, with ids the other way round
        key = "category_id" if "category_id" in one else "id"
        one[key] = 50 - one[key]
    write_json(file, turned)
    found = evaluate_detector(fast, file, folder)
    assert found.classes == "their names"
    assert close(found.compiled["box"], ap=1)
    for names in (("a", "b", "c", "d", "e"), ("ant", "ant", "bee", "dog", "elk")):
        write_json(file, annotation_file(RIGHT, names))
        found = evaluate_detector(fast, file, folder)
        assert found.classes == "the order of their ids"
        assert close(found.compiled["box"], ap=1)
    swapped = annotation_file(RIGHT, ("bee", "ant", "cat", "dog", "elk"))
    found = evaluate_detector(fast, write_json(file, swapped), folder)
    assert close(found.compiled["box"], ap=0)
    write_json(file, annotation_file(RIGHT, [*NAMES, "fox"]))
    with pytest.raises(cf.ArgumentError, match=r"has 6 categories, the detector 5 classes; give the annotations"):
        evaluate_detector(fast, file, folder)


# Damage


def test_damaged_pictures_are_listed_and_nothing_is_found_in_them(file, tmp_path):
    folder = write_pictures(tmp_path / "pictures")
    write_json(file, annotation_file({name: RIGHT[name] for name in ("deep/b.png", "c.png")}))
    whole = evaluate_detector(Pretended(RIGHT), file, folder)
    assert close(whole.compiled["box"], ap=1)
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "a.png").write_bytes((folder / "deep" / "b.png").read_bytes())
    found = evaluate_detector(Pretended(RIGHT), file, folder, reference=small())
    assert [*found.damaged] == ["c.png", "a.png"]
    assert "c.png: empty, damaged or not an image" in found.damaged["c.png"]
    assert "it has 24x400 pixels, the annotation file says 400x20" in found.damaged["a.png"]
    assert close(found.compiled["box"], ap=34 / 101)  # one of three objects
    assert (found.pictures, found.objects, found.images_run) == (3, 3, 1)
    assert "2 damaged, where nothing was found" in str(found)
    assert found.to_dict()["damaged"][0]["picture"] == "c.png"
    (folder / "deep" / "b.png").unlink()
    with pytest.raises(cf.DatasetError, match=r"1 of 3 pictures of .* are not there: deep/b.png"):
        evaluate_detector(Pretended(RIGHT), file, folder)
    (folder / "deep" / "b.png").write_bytes(b"")
    with pytest.raises(cf.ImageError, match=r"none of the 3 pictures could be used; the first: .*c.png"):
        evaluate_detector(Pretended(RIGHT), file, folder)


def test_a_limit(folder, file):
    found = evaluate_detector(Pretended(RIGHT), file, folder, limit=2)
    assert (found.pictures, found.images_run, found.objects) == (2, 2, 3)
    assert close(found.compiled["box"], ap=1)


# Going on


def test_an_interrupted_evaluation_goes_on(folder, file, tmp_path):
    """Two models run on each picture, so three calls are one picture."""
    fast, kept = Pretended(RIGHT), tmp_path / "kept"
    reference = small()
    whole = evaluate_detector(fast, file, folder, reference=reference)
    fast.calls, fast.stop = 0, 1
    with pytest.raises(KeyboardInterrupt):
        evaluate_detector(fast, file, folder, reference=reference, resume=kept)
    fast.stop = -1
    for images_run in (2, 0):
        found = evaluate_detector(fast, file, folder, reference=reference, resume=kept)
        assert found == dataclasses.replace(whole, images_run=images_run)
    assert fast.calls == 3


def test_a_file_cut_anywhere_goes_on(folder, file, tmp_path):
    """A program was killed while it wrote: what is behind the last whole line is found again."""
    fast, kept = Pretended(RIGHT), tmp_path / "kept"
    whole = evaluate_detector(fast, file, folder, resume=kept)
    content = kept.read_bytes()
    first = content.index(b"\n") + 1
    ends = [at + 1 for at in range(first, len(content)) if content[at : at + 1] == b"\n"]
    assert len(ends) == 3
    for cut in (0, 5, first - 1, first, first + 1, *ends, *(end - 1 for end in ends), *(end - 9 for end in ends)):
        kept.write_bytes(content[:cut])
        found = evaluate_detector(fast, file, folder, resume=kept)
        assert found == dataclasses.replace(whole, images_run=3 - sum(end <= cut for end in ends)), cut
        assert kept.read_bytes() == content


def test_lines_that_no_evaluation_wrote(folder, file, tmp_path):
    """Somebody wrote them with a right sum: what is no detection does not count, nor does what is behind."""
    from conformer_fast.storage.lines import line_of, value_of

    fast, kept = Pretended(RIGHT), tmp_path / "kept"
    whole = evaluate_detector(fast, file, folder, resume=kept)
    head, *lines = kept.read_bytes().splitlines(keepends=True)
    picture, (sound,) = value_of(lines[0])
    boxes, scores, labels, size, masks = sound
    for value in (
        [],
        7,
        [picture, []],
        [picture, [sound, sound]],
        [3, [sound]],
        [-1, [sound]],
        [picture, [[boxes, scores, labels, size]]],
        [picture, [[boxes, scores, labels, [1, 1], masks]]],
        [picture, [[boxes, scores, labels, [0, 0], None]]],
        [picture, [[boxes[:1], scores, labels, size, masks]]],
        [picture, [[[[1.0, 2.0, 3.0]] * 2, scores, labels, size, masks]]],
        [picture, [[boxes, [float("nan")] * 2, labels, size, masks]]],
        [picture, [[boxes, scores, [5, 0], size, masks]]],
        [picture, [[boxes, scores, labels, size, masks[:1]]]],
        [picture, [[boxes, scores, labels, size, [*masks[:1], 7]]]],
        [picture, [[boxes, scores, labels, size, [*masks[:1], "0" * 50]]]],
    ):
        kept.write_bytes(head + line_of(value) + b"".join(lines[1:]))
        found = evaluate_detector(fast, file, folder, resume=kept)
        assert found == whole, value


def test_another_evaluation_is_not_continued(folder, file, named, tmp_path):
    kept = tmp_path / "kept"
    evaluate_detector(Pretended(RIGHT), file, folder, resume=kept)
    content = kept.read_bytes()
    other = write_json(tmp_path / "other.json", {**annotation_file(RIGHT), "info": 1})
    sure = filled(dataclasses.replace(SMALL, min_score=0.1))
    larger = filled(SMALL)
    larger.recipe = cf.Recipe(size=1000)
    in_8_bits = Pretended(RIGHT, precision="int8")
    in_8_bits.settings = dataclasses.replace(in_8_bits.settings, quantization=Quantization("int8", {"stem": 1.0}))
    for fast, given, options, difference in (
        (Pretended(RIGHT), file, {"limit": 2}, "pictures was 3 and is 2"),
        (Pretended(RIGHT), file, {"reference": small()}, "reference was False and is True"),
        (Pretended(RIGHT), other, {}, "of another annotation file"),
        (Pretended(RIGHT, precision="bf16"), file, {}, "precision was 'fp32' and is 'bf16'"),
        (in_8_bits, file, {}, "of another quantization, precision was"),
        (Pretended(RIGHT, sure), file, {}, "min_score was 0.05 and is 0.1"),
        (Pretended(RIGHT, named), file, {}, "normalization was"),
        (Pretended(RIGHT, larger), file, {}, "size was None and is 1000"),
        (Pretended(RIGHT, filled(SMALL, torch.float64)), file, {}, "of other weights"),
    ):
        with pytest.raises(cf.DatasetError, match=f"kept is of another evaluation: {difference}.*; name another file"):
            evaluate_detector(fast, given, folder, resume=kept, **options)
        assert kept.read_bytes() == content
    for wrong in (b"[1]\n", file.read_bytes()):
        kept.write_bytes(wrong)
        with pytest.raises(cf.DatasetError, match="kept holds no evaluation of a detector; name another file"):
            evaluate_detector(Pretended(RIGHT), file, folder, resume=kept)
        assert kept.read_bytes() == wrong
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        evaluate_detector(Pretended(RIGHT), file, folder, resume=tmp_path / "no" / "kept")


def test_a_damaged_picture_is_tried_again(file, tmp_path):
    folder, kept = write_pictures(tmp_path / "pictures"), tmp_path / "kept"
    sound = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(sound[:50])
    found = evaluate_detector(Pretended(RIGHT), file, folder, resume=kept)
    assert ([*found.damaged], found.images_run) == (["c.png"], 2)
    (folder / "c.png").write_bytes(sound)
    found = evaluate_detector(Pretended(RIGHT), file, folder, resume=kept)
    assert ([*found.damaged], found.images_run) == ([], 1)
    assert close(found.compiled["box"], ap=1)


# What is said


def test_published_figures_are_shown_where_they_are_of_such_a_detector():
    assert [figure.box for figure in detector_published_for(detector_config("mask-rcnn"))] == [0.436]
    assert [figure.box for figure in detector_published_for(detector_config("faster-rcnn"))] == [0.431]
    as_read = dataclasses.replace(VARIANTS["small-p32"], num_classes=1)  # a backbone's file tells no classes
    assert len(detector_published_for(detector_config("mask-rcnn", as_read))) == 1
    for other in (detector_config("mask-rcnn", "small-p16"), detector_config("mask-rcnn", num_classes=79), SMALL):
        assert detector_published_for(other) == []


def test_for_people_and_programs(folder, file):
    found = evaluate_detector(Pretended(RIGHT), file, folder, reference=small())
    lines = str(found).splitlines()
    assert lines[0] == "pretended"
    assert lines[1].endswith("6 objects in 3 pictures; classes by the order of their ids")
    assert lines[2].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[3].split() == ["box", "100.0%", "100.0%", "100.0%", "100.0%", "-", "-"]
    assert [line[:22].strip() for line in lines[4:]] == [
        *("mask", "reference's box", "reference's mask", "by reference's over 0."),
        "by reference's over 0.",
    ]
    assert str(dataclasses.replace(found, damaged={"x": "x\x1b"})).endswith("\ndamaged: x\\x1b")
    published = tuple(detector_published_for(detector_config("mask-rcnn")))
    figures = dataclasses.replace(found, published=published)
    assert str(figures).splitlines()[-1] == (
        "published by arXiv 2105.03889: box AP 43.6% (+56.4 here); not comparable, that is of the 5000 pictures of "
        "COCO val 2017"
    )
    assert str(dataclasses.replace(figures, pictures=COCO_PICTURES)).endswith("box AP 43.6% (+56.4 here)")
    assert not dataclasses.replace(figures, pictures=COCO_PICTURES, damaged={"a": "b"}).comparable
    assert not dataclasses.replace(figures, pictures=COCO_PICTURES, size=640).comparable
    values = json.loads(json.dumps(figures.to_dict()))
    assert values["compiled"]["box"]["ap"] == pytest.approx(1)
    assert values["published"][0]["comparable"] is False
    assert values["published"][0]["difference"] == pytest.approx(0.564)


def test_what_is_assumed_is_said(folder, file, named, recwarn):
    evaluate_detector(Pretended(RIGHT, named), file, folder)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="assumed: ImageNet's normalization"):
        evaluate_detector(Pretended(RIGHT), file, folder)


def test_wrong_arguments(folder, file):
    fast = Pretended(RIGHT)
    for detector, options, message in (
        (cf.create_model("digits"), {}, "runs compiled detectors and Detectors, got a Conformer; evaluate runs class"),
        ("mask-rcnn", {}, "got a str"),
        (cf.Detector(SMALL), {}, "in training mode"),
        (fast, {"reference": cf.Detector(SMALL).train()}, "other sizes or weights"),
        (fast, {"reference": small(masks=False)}, "the reference is another detector"),
        (fast, {"reference": "yes"}, "reference must be a Detector"),
        (fast, {"limit": 0}, "limit must be"),
        (fast, {"progress": 1}, "progress must be True or False"),
        (fast, {"resume": 3}, "must be a path"),
    ):
        with pytest.raises(cf.ArgumentError, match=message):
            evaluate_detector(detector, file, folder, **options)


def test_without_pycocotools(folder, file, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pycocotools")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(cf.BackendError, match=r'pip install "conformer-fast\[coco\]"'):
        evaluate_detector(Pretended(RIGHT), file, folder)


# average_precision()


def test_one_runs_detections_as_the_others_truth():
    sure, unsure = objects((10, 2, 20, 12), (50, 0, 60, 10), scores=(0.9, 0.2)), objects((10, 2, 20, 12))
    found = average_precision([unsure], [sure])
    assert close(found["box"], ap=1, ap_small=1, ap_large=None)
    assert close(found["mask"], ap=1)
    assert close(average_precision([unsure], [sure], min_score=0.1)["box"], ap=51 / 101)
    assert close(average_precision([objects((12, 2, 22, 12))], [sure])["box"], ap=0.4)
    assert close(average_precision([objects()], [sure])["mask"], ap=0)
    assert close(average_precision([sure], [objects()])["mask"], ap=None, ap50=None)
    assert average_precision([sure._replace(masks=None)], [sure]).keys() == {"box"}
    assert average_precision([], [])["box"].ap is None


def test_an_empty_mask_is_no_truth():
    one = objects((10, 2, 20, 12), (50, 0, 60, 10))
    one.masks[1] = False
    assert close(average_precision([one], [one])["mask"], ap=1)


def test_runs_that_do_not_fit():
    one = objects((10, 2, 20, 12))
    for found, truth, message in (
        ([one], [one, one], "found is of 1 pictures, truth of 2; run both on the same"),
        ([one], ["a"], "truth must be Detections, one a picture, got 'a'"),
        ("a", [one], "found must be a list"),
    ):
        with pytest.raises(cf.ArgumentError, match=message):
            average_precision(found, truth)
