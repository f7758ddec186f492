"""Pictures of a folder, in batches that are read when they are asked for."""

import pytest
import torch
from PIL import Image

from conformer_fast.datasets.batches import DatasetBatches, images_in
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import ImageError
from conformer_fast.preprocessing.cpu import load_batch


@pytest.fixture
def pictures(tmp_path):
    """Ten gray pictures in two folders, in order of their brightness and names; one's name is in capitals."""
    for index in range(10):
        folder = tmp_path / ("ab"[index // 5])
        folder.mkdir(exist_ok=True)
        name = f"{index}.PNG" if index == 3 else f"{index}.png"
        Image.new("RGB", (40, 30), (index * 20,) * 3).save(folder / name)
    (tmp_path / "a" / "labels.txt").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "batch", "taken"),
    [
        (100, 8, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]),
        (10, 5, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (4, 8, [[0, 2, 5, 7]]),
        (3, 2, [[0, 3], [6]]),
        (1, 1, [[0]]),
    ],
)
def test_pictures_are_taken_evenly(limit, batch, taken, pictures):
    paths = sorted(pictures.glob("*/*.[pP]*"), key=lambda path: int(path.stem))
    found = list(images_in(pictures, 32, limit, batch))
    assert [len(images) for images in found] == [len(part) for part in taken]
    for images, part in zip(found, taken, strict=True):
        assert torch.equal(images, load_batch([paths[index] for index in part], 32))


def test_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"has no pictures for calibration \(\.bmp, .*\.png"):
        images_in(tmp_path, 32, 8)


def test_damaged_picture_is_named(pictures):
    (pictures / "b" / "6.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(ImageError, match=r"6\.png"):
        list(images_in(pictures, 32, 10))


def test_hidden_files_are_no_pictures(tmp_path):
    """Such as those that macOS leaves beside pictures."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no picture")
    assert [len(batch) for batch in images_in(tmp_path, 32, 10)] == [1]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        images_in(tmp_path / "none", 32, 10)


def test_pictures_are_told_apart_by_their_contents(pictures):
    """Not by names or dates; and by how they are read."""
    known = images_in(pictures, 32, 10).identity
    assert images_in(pictures, 32, 10).identity == known
    assert len({known, *(images_in(pictures, *other).identity for other in [(48, 10), (32, 9), (32, 10, 4)])}) == 4
    (pictures / "a" / "0.png").rename(pictures / "a" / "00.png")
    assert images_in(pictures, 32, 10).identity == known
    Image.new("RGB", (40, 30), (1, 2, 3)).save(pictures / "a" / "00.png")
    assert images_in(pictures, 32, 10).identity != known


def test_a_data_sets_pictures(pictures):
    """The same images as of the files, in its order, told apart in the same way."""
    dataset = open_dataset(pictures)
    found = DatasetBatches(dataset, 32, 4)
    assert [len(images) for images in found] == [4, 4, 2]
    paths = [pictures / picture.name for picture in dataset.pictures]
    assert torch.equal(torch.cat(list(found)), load_batch(paths, 32))
    assert found.identity == DatasetBatches(open_dataset(pictures), 32, 4).identity
    others = [(dataset, 48, 4), (dataset, 32, 5), (dataset.evenly(9), 32, 4)]
    assert len({found.identity, *(DatasetBatches(*other).identity for other in others)}) == 4
    (pictures / "a" / "0.png").write_bytes((pictures / "b" / "9.png").read_bytes())
    assert DatasetBatches(open_dataset(pictures), 32, 4).identity != found.identity


def test_what_is_no_file_any_more_is_named_at_once(pictures):
    """A device, which would be read as if empty, or a pipe, which would be waited for."""
    batches = images_in(pictures, 32, 10), DatasetBatches(open_dataset(pictures), 32)
    (pictures / "a" / "0.png").unlink()
    (pictures / "a" / "0.png").symlink_to("/dev/null")
    for one in batches:
        with pytest.raises(ImageError, match=r"a/0.png: cannot be read \(a pipe or a device, no regular file\)"):
            _ = one.identity
