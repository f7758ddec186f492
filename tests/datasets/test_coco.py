"""COCO's annotation files: what is in them is found, and what cannot be is refused, with the place."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from coco_samples import NAMES, annotation_file, objects, write_json, write_pictures

from conformer_fast.datasets.coco import read_coco, uncompressed
from conformer_fast.errors import ArgumentError, DatasetError
from conformer_fast.model.detector.masks import run_lengths as lengths_of

SOUND = annotation_file(
    {"a.png": objects((10, 2, 20, 12), (50, 0, 60, 5)), "c.png": objects((0, 0, 9, 9), name="c.png")}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_what_is_in_a_file(folder, tmp_path):
    file = write_json(tmp_path / "instances.json", SOUND)
    found = read_coco(file, folder, outlines=True)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [picture.name for picture in found.pictures] == ["c.png", "deep/b.png", "a.png"]  # by their ids
    assert found.pictures[1][1:] == (str(folder / "deep" / "b.png"), 24, 400)
    assert found.categories == NAMES
    assert [(one["id"], one["image_id"], one["category_id"]) for one in found.annotations] == [
        (1, 2, 0),
        (2, 2, 0),
        (3, 0, 0),
    ]
    assert found.annotations[0]["bbox"] == [10, 2, 10, 10]
    assert found.annotations[0]["segmentation"] == SOUND["annotations"][0]["segmentation"]
    assert "segmentation" not in read_coco(file, folder, outlines=False).annotations[0]


def test_a_limit_takes_pictures_evenly(folder, tmp_path):
    file = write_json(tmp_path / "instances.json", SOUND)
    found = read_coco(file, folder, outlines=True, limit=2)
    assert [picture.name for picture in found.pictures] == ["c.png", "deep/b.png"]
    assert [one["image_id"] for one in found.annotations] == [0]
    assert len(read_coco(file, folder, outlines=True, limit=99).pictures) == 3
    with pytest.raises(ArgumentError, match="limit must be a whole number, at least 1, got 0"):
        read_coco(file, folder, outlines=True, limit=0)


def changed(*path, to) -> dict:
    """SOUND with one value changed; None takes it away."""
    value = copy.deepcopy(SOUND)
    *parents, last = path
    place = value
    for key in parents:
        place = place[key]
    if to is None:
        del place[last]
    else:
        place[last] = to
    return value


FIRST = ("annotations", 0)
DEEP = [0]
for _ in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must have the lists images, categories, annotations"),
        ({"images": []}, "must have the lists"),
        (changed("images", to={}), "must have the lists"),
        (changed("images", to=[]), "has 0 images and 5 categories"),
        (changed("categories", to=[]), "has 3 images and 0 categories"),
        (changed("images", 1, to=7), r"images\[1\] must be an object with a whole number as its id"),
        (changed("images", 1, "id", to="1"), r"images\[1\] must be an object"),
        (changed("images", 1, "id", to=True), r"images\[1\] must be an object"),
        (changed("images", 1, "id", to=1000), "several images have the id 1000; give each its own"),
        (changed("categories", 1, "id", to=10), "several categories have the id 10"),
        (changed("annotations", 1, "id", to=0), "several annotations have the id 0"),
        (
            changed("images", 0, "file_name", to="../a.png"),
            r"image 1000: file_name must be a path inside .* '../a.png'",
        ),
        (changed("images", 0, "file_name", to="deep/../../a.png"), "must be a path inside"),
        (changed("images", 0, "file_name", to="..\\a.png"), "must be a path inside"),
        (changed("images", 0, "file_name", to="/etc/passwd"), "must be a path inside"),
        (changed("images", 0, "file_name", to="C:\\a.png"), "must be a path inside"),
        (changed("images", 0, "file_name", to=""), "must be a path inside"),
        (changed("images", 0, "file_name", to=None), "must be a path inside the folder of pictures, got None"),
        (
            changed("images", 0, "file_name", to="no.png"),
            "1 of 3 pictures of .* are not there: no.png; give the folder",
        ),
        (changed("images", 0, "file_name", to="a\0.png"), r"are not there: a\\x00.png"),
        (changed("images", 0, "file_name", to="deep"), "are not there: deep"),
        (changed("images", 0, "width", to=0), r"width and height must be whole numbers from 1 to 65535, got \[0, 20\]"),
        (changed("images", 0, "height", to=20.0), "must be whole numbers"),
        (changed("images", 0, "height", to=10**9), "must be whole numbers"),
        (changed("categories", 0, "name", to=3), "category 10: name must be a text, got 3"),
        (changed(*FIRST, "image_id", to=7), "annotation 0: image_id must be the id of one of the file's, got 7"),
        (changed(*FIRST, "category_id", to=None), "category_id must be the id of one of the file's, got None"),
        (changed(*FIRST, "category_id", to=DEEP), "category_id must be the id of one"),
        (changed(*FIRST, "bbox", to=[1, 2, 3]), "bbox must be four numbers"),
        (changed(*FIRST, "bbox", to=[1, 2, 3, -1]), "bbox must be four numbers"),
        (changed(*FIRST, "bbox", to=[1, 2, 3, float("nan")]), "bbox must be four numbers"),
        (changed(*FIRST, "bbox", to=[1, 2, 3, "4"]), "bbox must be four numbers"),
        (changed(*FIRST, "bbox", to=[1, 2, 3, 10**400]), "bbox must be four numbers"),
        (changed(*FIRST, "area", to=None), "area must be a number of pixels, got None"),
        (changed(*FIRST, "area", to=-1), "area must be a number of pixels"),
        (changed(*FIRST, "iscrowd", to=2), "iscrowd must be 0 or 1, got 2"),
        (
            changed(*FIRST, "segmentation", to=None),
            r"segmentation must be polygons, or run lengths of the size \[20, 400",
        ),
        (changed(*FIRST, "segmentation", to=[]), "must be run lengths, or polygons of three points or more"),
        (changed(*FIRST, "segmentation", to=[[1, 2, 3, 4]]), "polygons of three points or more"),
        (changed(*FIRST, "segmentation", to=[[1, 2, 3, 4, 5, 6, 7]]), "polygons of three points or more"),
        (changed(*FIRST, "segmentation", to=[[0, 0, 1e9, 0, 0, 1e9]]), "edges of at most 1,000,000 pixels together"),
        (changed(*FIRST, "segmentation", "size", to=[400, 20]), r"run lengths of the size \[20, 400\]"),
        (changed(*FIRST, "segmentation", "counts", to=None), "segmentation: no run lengths"),
        (changed(*FIRST, "segmentation", "counts", to=[8000, -1, 1]), "segmentation: no run lengths"),
        (changed(*FIRST, "segmentation", "counts", to=[7999]), "run lengths of 7999 pixels for 8000"),
        (changed(*FIRST, "segmentation", "counts", to="\u00e9"), "segmentation: .*ascii"),
        (changed(*FIRST, "segmentation", "counts", to=""), "segmentation: no run lengths"),
        (changed(*FIRST, "segmentation", "counts", to="0`"), "segmentation: no run lengths"),  # another should follow
        (changed(*FIRST, "segmentation", "counts", to="P" * 12 + "0"), "segmentation: no run lengths"),
        (changed(*FIRST, "segmentation", "counts", to="!"), "segmentation: no run lengths"),
        (changed(*FIRST, "segmentation", "counts", to="0O"), "segmentation: no run lengths"),  # 0, -1
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(folder, tmp_path, value, message):
    file = write_json(tmp_path / "instances.json", value)
    with pytest.raises(DatasetError, match=message) as caught:
        read_coco(file, folder, outlines=True)
    assert str(file) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000], ids=range(5))
def test_what_is_no_json(folder, tmp_path, content):
    file = tmp_path / "instances.json"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"instances.json: no JSON \(.*\); give COCO's instances"):
        read_coco(file, folder, outlines=True)


def test_a_file_that_is_none(folder, tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "absent", "No such file")):
        with pytest.raises(DatasetError, match=rf"cannot be read \({why}"):
            read_coco(path, folder, outlines=True)


def test_without_outlines_nothing_is_said_of_them(folder, tmp_path):
    file = write_json(tmp_path / "instances.json", changed(*FIRST, "segmentation", to=None))
    assert len(read_coco(file, folder, outlines=False).annotations) == 3


def test_compressed_run_lengths_are_those_of_pycocotools():
    mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (300, 200), (1, 70_000)):
        for share in (0.0, 0.001, 0.5, 1.0):
            pixels = random.random((height, width)) < share
            text = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
            assert uncompressed(text, height * width) == lengths_of(torch.from_numpy(pixels))["counts"]
            with pytest.raises(ValueError, match="pixels for"):
                uncompressed(text, height * width + 1)


def test_outlines_may_be_compressed(folder, tmp_path):
    mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    plain = SOUND["annotations"][0]["segmentation"]
    text = mask.frPyObjects(plain, *plain["size"])["counts"].decode()
    file = write_json(tmp_path / "instances.json", changed(*FIRST, "segmentation", "counts", to=text))
    assert read_coco(file, folder, outlines=True).annotations[0]["segmentation"] == json.loads(json.dumps(plain))
