"""Annotation files of COCO, and what was kept of an evaluation: damaged, they are refused, or judged by pycocotools,
whose C code reads what is in them."""

from __future__ import annotations

import copy
import json

import pytest
from attempts import Attempts, every
from coco_samples import Pretended, annotation_file, objects, write_pictures
from damage import broken, broken_json
from hypothesis import strategies as st

from conformer_fast.errors import ArgumentError, DatasetError, ImageError
from conformer_fast.evaluation.coco import evaluate_detector
from conformer_fast.evaluation.detector_report import DetectorEvaluation
from conformer_fast.storage.lines import line_of, value_of

pytest.importorskip("pycocotools.cocoeval", reason="needs pycocotools")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the weights do not say it")]
FOUND = {"a.png": objects((10, 2, 20, 12), (50, 0, 60, 5)), "c.png": objects((0, 0, 9, 9), name="c.png")}
ODD = (  # outlines and places, as JSON text
    *('{"size": [20, 400], "counts": [8000]}', '{"size": [20, 400], "counts": [0, 0, 8000, 0, 0]}'),
    *('{"size": [20, 400], "counts": "PPPPPPP0"}', '{"size": [20, 400], "counts": "0"}', "[[1, 1, 1, 1, 1, 1]]"),
    *("[[-9e5, 0, 9, 9, 0, 9]]", "[[1e308, 1e308, 0, 0, 9, 9]]", "[[1e-300, 0, 0.5, 7.25, 400, 20, 401, 21]]"),
    *('"deep/b.png"', '"../a.png"', "[0, 0, 0, 0]", "[-5, -5, 1e9, 1e9]", "1000", "993"),
)


@pytest.fixture(scope="module")
def detector() -> Pretended:
    return Pretended(FOUND)


@pytest.fixture
def folder(attempt: Attempts):
    return write_pictures(attempt.folder / "pictures")


def possible(found: DetectorEvaluation) -> None:
    for kind in (found.compiled["box"], found.compiled["mask"]):
        for value in (kind.ap, kind.ap50, kind.ap75, kind.ap_small, kind.ap_medium, kind.ap_large):
            assert value is None or 0 <= value <= 1


def test_annotation_files(attempt: Attempts, tried, folder, detector):
    value = annotation_file(FOUND)
    value["annotations"][1]["segmentation"] = [[50, 0, 60, 0, 60, 5, 50, 5]]
    value["annotations"].append({**copy.deepcopy(value["annotations"][0]), "id": 77, "iscrowd": 1})
    sound = json.dumps(value).encode()
    path = attempt.write("instances.json", sound)
    right = evaluate_detector(detector, path, folder)

    def equal(found: DetectorEvaluation) -> bool:
        possible(found)
        return found == right

    def one(damaged: bytes) -> None:
        attempt.write("instances.json", damaged)
        attempt.read(
            lambda: evaluate_detector(detector, path, folder),
            (DatasetError, ArgumentError, ImageError),
            attempt.folder,
            equal,
            ("the weights do not say it",),
        )

    one(sound)
    damaged = broken_json(value, ODD).map(lambda text: text.encode(errors="surrogatepass"))
    every(st.one_of(damaged, damaged, broken(sound)), 150, one)
    attempt.check()
    tried("COCO's annotation files: damaged", attempt.counts)


def test_what_was_kept_of_an_evaluation(attempt: Attempts, tried, folder, detector):
    """A line with a wrong sum, and one that is no detections with a right sum, are found again."""
    file = attempt.write("instances.json", json.dumps(annotation_file(FOUND)).encode())
    kept = attempt.folder / "kept" / "state"
    kept.parent.mkdir()
    right = evaluate_detector(detector, file, folder, resume=kept)
    content = kept.read_bytes()
    first, *lines = content.splitlines(keepends=True)

    def equal(found: DetectorEvaluation) -> bool:
        possible(found)
        return found.compiled == right.compiled

    def one(damaged: bytes) -> None:
        kept.write_bytes(damaged)
        attempt.read(
            lambda: evaluate_detector(detector, file, folder, resume=kept),
            DatasetError,
            kept,
            equal,
            ("the weights do not say it",),
            writes=kept.parent,
        )

    one(content)
    one(b"no file of ours\n")
    others = broken_json(value_of(lines[0]), ODD)
    summed = others.map(lambda text: first + _summed(text) + b"".join(lines[1:]))
    every(st.one_of(broken(content), summed), 120, one)
    attempt.check()
    tried("what was kept of an evaluation of a detector: damaged, with a right sum too", attempt.counts)


def _summed(text: str) -> bytes:
    """A line of this text, if it is JSON."""
    try:
        return line_of(json.loads(text))
    except (ValueError, RecursionError):
        return text.encode(errors="surrogatepass") + b"\n"
