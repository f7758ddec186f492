"""Which classes the names of folders and labels mean, and what is refused because they may mean two things."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from data_samples import found, picture, refused, write, write_parquet, write_tar

from conformer_fast.datasets.classes import RENAMED, classes_of, label_of
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import DatasetError
from conformer_fast.model.class_names import imagenet_labels, imagenet_synsets

IMAGENETTE = {  # its labels' names -> the classes
    "tench": 0,
    "English springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "French horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}


def test_folders_of_plain_numbers_are_those_classes(tmp_path):
    """As in ImageNetV2; in the order of texts 10 comes before 2."""
    names = [str(number) for number in range(1000)]
    assert classes_of(sorted(names), 1000, "x") == {name: int(name) for name in names}
    write(tmp_path, {f"{number}/x.png": picture(number) for number in range(12)})
    for num_classes in (12, None):
        assert found(open_dataset(tmp_path, num_classes=num_classes)) == {f"{n}/x.png": n for n in range(12)}
    write(tmp_path / "padded", {f"{number:02d}/x.png": picture(number) for number in range(12)})
    assert open_dataset(tmp_path / "padded", num_classes=12).labels == tuple(range(12))
    tar = write_tar(tmp_path / "x.tar", {f"val/{number}/x.png": picture(number) for number in range(12)})
    assert open_dataset(tar, num_classes=12).labels == tuple(range(12))


def test_numbers_may_be_absent_if_it_is_clear_where_they_begin():
    assert classes_of(["0", "217", "482"], 1000, "x") == {"0": 0, "217": 217, "482": 482}
    for names, num_classes, text in [
        (["217", "482"], 1000, "called by numbers are 0 ... 999"),
        (["1", "2"], None, "called by numbers begin at 0"),
        (["1", "2"], 2, "called by numbers are 0 ... 1"),
        (["0", "1", "01"], 3, "a number twice"),
        ([str(number) for number in range(10)], 1000, "labels 0 ... 9 alone, the model has 1000 classes"),
    ]:
        with pytest.raises(DatasetError) as error:
            classes_of(names, num_classes, "x")
        assert text in str(error.value)


@pytest.mark.parametrize("num_classes", [1000, None])
def test_the_development_kits_ids_are_refused_with_the_line_that_renames_them(tmp_path, num_classes):
    io = pytest.importorskip("scipy.io")
    numpy = pytest.importorskip("numpy")
    with pytest.raises(DatasetError, match="another order than the models' scores") as error:
        classes_of([str(number) for number in range(1, 1001)], num_classes, "x")
    assert str(error.value).endswith(RENAMED)
    rows = [(number, synset, "words") for number, synset in enumerate(reversed(imagenet_synsets()), 1)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    for number, *_ in rows:
        (tmp_path / str(number)).mkdir()
    io.savemat(tmp_path / "meta.mat", {"synsets": numpy.array([*rows, (1001, "n00001740", "inner")], kinds)[:, None]})
    command = RENAMED.removeprefix('python -c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {*imagenet_synsets(), "meta.mat"}


def test_the_label_1000_tells_the_development_kits_ids():
    with pytest.raises(DatasetError, match=r"1000 is none of 0 \.\.\. 999.*development kit"):
        label_of("1000", 1000, "x")


def test_folders_that_are_called_as_imagenets_classes(tmp_path):
    write(tmp_path, {f"{name.replace(' ', '_')}/x.png": picture(1) for name in IMAGENETTE})
    assert found(open_dataset(tmp_path, num_classes=1000)) == {
        f"{name.replace(' ', '_')}/x.png": index for name, index in IMAGENETTE.items()
    }
    assert open_dataset(tmp_path, num_classes=10).labels == tuple(range(10))  # a model of these ten
    write(tmp_path, {"crane/x.png": picture(1)})
    assert "1 class names that mean none or several of ImageNet's: crane" in refused(tmp_path, None, 1000)


def test_a_thousand_other_names_are_another_models():
    names = [f"class {index:03}" for index in range(1000)]
    assert classes_of(names, 1000, "x")["class 007"] == 7


def test_parquet_labels_mean_what_they_are_called(tmp_path):
    labels = [3, 0, 9, 1, 2, 4, 5, 6, 7, 8]
    file = write_parquet(tmp_path / "x.parquet", [picture(1)] * 10, labels, names=list(IMAGENETTE))
    expected = list(IMAGENETTE.values())
    assert open_dataset(file, num_classes=1000).labels == tuple(expected[label] for label in labels)
    assert open_dataset(file, num_classes=10).labels == tuple(labels)
    assert "has 10 classes (tench, English springer" in refused(file, None, 7)
    synsets = [imagenet_synsets()[index] for index in (388, 0)]
    file = write_parquet(tmp_path / "y.parquet", [picture(1)] * 2, [0, 1], names=synsets)
    assert open_dataset(file, num_classes=1000).labels == (388, 0)
    others = write_parquet(tmp_path / "z.parquet", [picture(1)] * 2, [0, 1], names=["cat", "crane"])
    assert "has 2 classes (cat, crane), the model has 1000" in refused(others, None, 1000)


def test_imagenets_own_names_may_be_lists_and_occur_twice(tmp_path):
    """As in imagenet-1k: "tench, Tinca tinca", and two called "crane"."""
    names = [f"{name.partition(' (')[0]}, and so on" for name in imagenet_labels()]
    assert classes_of([f"{name} {index}" for index, name in enumerate(names)], 1000, "x")[f"{names[517]} 517"] == 517


def test_numbers_that_may_be_a_part_numbered_anew_are_refused(tmp_path):
    """As imagenette's 0 ... 9, which mean 0, 217, 482, ..."""
    parquet = write_parquet(tmp_path / "x.parquet", [picture(1)] * 10, list(range(10)))
    contents: dict[str, bytes] = {}
    for number in range(10):
        contents |= {f"{number}.png": picture(1), f"{number}.cls": str(number).encode()}
    tar = write_tar(tmp_path / "x.tar", contents)
    for file in (parquet, tar):
        assert "labels 0 ... 9 alone, the model has 1000 classes" in refused(file, None, 1000)
        assert open_dataset(file, num_classes=10).labels == tuple(range(10))
    named = {name: json.dumps({"label": "gas pump"}).encode() for name in ("a.json",)} | {"a.png": picture(1)}
    assert open_dataset(write_tar(tmp_path / "y.tar", named), num_classes=1000).labels == (571,)


def test_labels_are_quoted_short_and_escaped():
    with pytest.raises(DatasetError) as error:
        label_of("\x1b[31m" + "x" * 1_000_000, 1000, "x")
    assert "\\x1b[31m" in str(error.value)
    assert len(str(error.value)) < 300
