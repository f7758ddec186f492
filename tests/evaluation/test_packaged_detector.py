"""The detector that ships finds held-out digits, in every precision of this CPU nearly as its reference."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf
from benchmarks.detector_accuracy import rows
from conformer_fast.datasets.scattered_digits import SIDE, ScatteredDigits, write_coco
from conformer_fast.evaluation.coco import evaluate_detector
from conformer_fast.model.detector.config import PACKAGED

pytestmark = pytest.mark.slow

pytest.importorskip("openvino")
pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")
LEAST = {"fp32": 0.99, "bf16": 0.97, "fp16": 0.97, "int8": 0.95}  # precision by the reference's detections as truth
PICTURES = 48


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return {row["precision"]: row for row in rows(tmp_path_factory.mktemp("digits"), PICTURES, calibration=16)}


def test_it_finds_digits(judged):
    """500 pictures have 0.746 and 0.712."""
    reference = judged["fp32"]["reference"]
    assert reference["box"] > 0.70
    assert reference["mask"] > 0.67


def test_every_precision_agrees(judged, record_property):
    assert {"fp32", "int8"} <= judged.keys() <= LEAST.keys()
    for precision, row in judged.items():
        for kind in ("box", "mask"):
            record_property("table", ("AP by the reference's detections", precision, kind, row["agreement"][kind]))
            assert row["agreement"][kind] >= LEAST[precision]
            assert row["compiled"][kind] >= row["reference"][kind] - 0.02


def test_fp32_agrees_through_winograds_convolutions(tmp_path, monkeypatch):
    """The maps of these pictures are too small for them by themselves."""
    winograd = pytest.importorskip("conformer_fast.engines.openvino.winograd", exc_type=ImportError)
    if not winograd.winograd_is_faster():
        pytest.skip("csrc/ was not built, or this CPU has no AVX2")
    counts, operation = [], winograd.Convolution3x3

    def counted(*arguments):
        counts.append(arguments)
        return operation(*arguments)

    monkeypatch.setattr(winograd, "FEWEST_PIXELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_OPERATIONS", 1)
    monkeypatch.setattr(winograd, "Convolution3x3", counted)
    file, detector = write_coco(tmp_path, *ScatteredDigits("test", 1).draw(24)), cf.create_detector(weights="packaged")
    fast = cf.compile(detector, backend="openvino", precision="fp32")
    found = evaluate_detector(fast, file, tmp_path, reference=detector)
    assert counts
    for kind in ("box", "mask"):
        assert found.agreement[kind].ap >= LEAST["fp32"]


class Pretended:
    """A compiled detector like the packaged one, that finds what `find` does."""

    def __init__(self, find) -> None:
        fast = cf.compile(cf.create_detector(weights="packaged"), backend="reference")
        self.config, self.recipe, self.labels, self.identity = fast.config, fast.recipe, fast.labels, fast.identity
        self.settings, self.reason, self.reference, self.find = fast.settings, "pretended", None, find

    def __call__(self, images, sizes=None):
        return self.find(images, sizes)


def test_a_worse_detector_is_told(tmp_path):
    """What the bounds are of: one layer whose weights have five values loses more than any precision may."""
    file = write_coco(tmp_path, *ScatteredDigits("test", 1).draw(24))
    detector, worse = (cf.create_detector(weights="packaged") for _ in range(2))
    with torch.no_grad():
        weight = worse.roi_head.bbox_head.shared_fcs[1].weight
        step = weight.abs().max() / 2
        weight.copy_((weight / step).round() * step)
    found = evaluate_detector(Pretended(cf.compile(worse, precision="fp32")), file, tmp_path, reference=detector)
    assert found.agreement["box"].ap < min(LEAST.values())
    assert found.compiled["box"].ap < found.reference["box"].ap - 0.02


def test_what_it_is():
    detector = cf.create_detector(weights="packaged")
    assert detector.config == PACKAGED
    assert (detector.recipe.size, detector.recipe.labels) == (SIDE, tuple("0123456789"))
    with pytest.raises(cf.CheckpointError, match="the packaged detector has sizes of its own"):
        cf.create_detector("mask-rcnn", weights="packaged")
    with pytest.raises(cf.CheckpointError, match="no detector can be downloaded; pass a checkpoint's path, or 'packag"):
        cf.create_detector(weights="pretrained")


def test_drawn_pictures_as_files(tmp_path):
    """Found objects in them are judged as the drawn ones: those are all right."""
    pictures, objects = ScatteredDigits("test", 3).draw(4)
    file = write_coco(tmp_path, pictures, objects)

    left = list(objects)

    def right(images, sizes):
        boxes, labels, masks = left.pop(0)
        return [cf.Detections(boxes, torch.ones(len(boxes)), labels, masks)]

    found = evaluate_detector(Pretended(right), file, tmp_path)
    assert (found.compiled["box"].ap, found.compiled["mask"].ap) == (pytest.approx(1), pytest.approx(1))
    assert found.classes == "their names"
