"""One rule for what counts in a folder, and a line for what does not."""

from __future__ import annotations

import os
import warnings

import pytest
from data_samples import found, picture, refused, write

from conformer_fast.datasets.batches import images_in
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import DatasetError, ImageError


def listed(folder) -> tuple[dict[str, int], list[str]]:
    """The pictures of the data set, after seeing that calibration takes the same; and the warnings, without paths."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dataset = open_dataset(folder)
        taken = images_in(folder, 32, 100).paths
    assert [os.fspath(path) for path in taken] == [picture.file for picture in dataset.pictures]
    texts = [str(warning.message).removeprefix(f"{folder}: ") for warning in said]
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
    return found(dataset), texts[: len(texts) // 2]


def test_links_to_folders_are_followed(tmp_path):
    """Class folders that are links, and links one level down."""
    write(tmp_path / "store", {"cats/1.png": picture(1), "dogs/2.png": picture(2), "more/3.png": picture(3)})
    write(tmp_path / "data", {"bird/0.png": picture(0)})
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "cats")
    (tmp_path / "data" / "dog").symlink_to("../store/dogs")
    (tmp_path / "data" / "bird" / "more").symlink_to("../../store/more")
    names = {"bird/0.png": 0, "bird/more/3.png": 0, "cat/1.png": 1, "dog/2.png": 2}
    assert listed(tmp_path / "data") == (names, [])


def test_links_that_lead_back_end(tmp_path):
    write(tmp_path / "data", {"a/1.png": picture(1), "b/2.png": picture(2)})
    write(tmp_path / "store", {"3.png": picture(3)})
    for link, target in {
        "data/a/self": "../a",
        "data/a/root": "../../data",
        "data/a/up": "../../..",
        "data/b/loop": "loop",
        "data/b/store": "../../store",
        "store/back": "../data",
        "store/again": "../store",
    }.items():
        (tmp_path / link).symlink_to(target)
    names, said = listed(tmp_path / "data")
    assert names == {"a/1.png": 0, "b/2.png": 1, "b/store/3.png": 1}
    assert said == [
        "left out files that are no pictures: 1 (b/loop); links to a folder that counts already: 5 "
        "(a/root, a/self, a/up, b/store/again, b/store/back)"
    ]


def test_what_is_hidden_or_no_picture_is_said(tmp_path):
    contents = ["a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "b/2.png", "b/._2.png", "b/.DS_Store", "b/3.avif"]
    write(tmp_path, {name: picture(1) for name in contents})
    names, said = listed(tmp_path)
    assert names == {"a/1.png": 0, "b/2.png": 1}
    assert said == [
        "left out files that are no pictures: 1 (b/3.avif); "
        "hidden files and folders: 2 (a/.ipynb_checkpoints, b/._2.png)"
    ]


def test_folders_may_be_deep(tmp_path):
    """900 of them crashed the interpreter."""
    place = os.open(write(tmp_path, {"a/0.png": picture(0)}) / "a", os.O_RDONLY)
    for _ in range(900):
        os.mkdir("d", dir_fd=place)
        deeper = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    with open(os.open("1.png", os.O_WRONLY | os.O_CREAT, dir_fd=place), "wb") as file:
        file.write(picture(1))
    os.close(place)
    names, said = listed(tmp_path)
    assert (sorted(map(len, names)), said) == ([7, 7 + 1800], [])


def test_folders_that_are_deeper_than_paths_may_be(tmp_path):
    place = os.open(write(tmp_path, {"a/0.png": picture(0)}) / "a", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=place)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    assert "the folder cannot be read (File name too long)" in refused(tmp_path)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """Not a class without pictures."""
    write(tmp_path, {"a/1.png": picture(1), "b/2.png": picture(2)})
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DatasetError, match=r"b: the folder cannot be read \(Permission denied\)"):
        images_in(tmp_path, 32, 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_pictures_that_are_no_files_are_damaged_at_once(tmp_path):
    write(tmp_path, {"a/0.png": picture(0)})
    os.mkfifo(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "3.png").symlink_to("absent")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 4
    for index, reason in enumerate(["a pipe or a device", "a pipe or a device", "No such file"], 1):
        with pytest.raises(ImageError, match=rf"a/{index}\.png: cannot be read \({reason}"):
            dataset.input(index, 32)


def test_names_that_are_not_utf_8(tmp_path):
    write(tmp_path, {"a/0.png": picture(0)})
    os.rename(tmp_path / "a" / "0.png", os.fsencode(tmp_path / "a") + b"/caf\xe9.png")
    dataset = open_dataset(tmp_path)
    assert dataset.input(0, 32).shape == (3, 32, 32)
    assert len(dataset.sha256()) == 64
