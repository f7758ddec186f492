"""The names of a data set's classes are found among the model's, in whatever order, or it is said what is taken."""

from __future__ import annotations

import json
import warnings

import pytest
from data_samples import found, picture, refused, write, write_parquet, write_tar

from conformer_fast.datasets.classes import classes_of, label_of, own_names
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import ArgumentError, DatasetError
from conformer_fast.model.class_names import imagenet_labels, imagenet_synsets

MODEL = ("newt", "Golden Retriever", "cat", "bird")  # in the order of the scores
SHADES = {"cat": 20, "golden_retriever": 10, "newt": 0}  # a part of them, in the order of the letters
EXPECTED = [2, 1, 0]


def folders(tmp_path):
    return write(tmp_path / "folders", {f"{name}/x.png": picture(shade) for name, shade in SHADES.items()})


def tar_of_folders(tmp_path):
    return write_tar(tmp_path / "x.tar", {f"val/{name}/x.png": picture(shade) for name, shade in SHADES.items()})


def tar_of_labels(tmp_path):
    contents: dict[str, bytes] = {}
    for number, name in enumerate(SHADES):
        end, label = (".json", json.dumps({"label": name})) if number else (".cls", name)
        contents |= {f"{number}.png": picture(number), f"{number}{end}": label.encode()}
    return write_tar(tmp_path / "x.tar", contents)


def parquet(tmp_path):
    return write_parquet(tmp_path / "x.parquet", [picture(1)] * 3, [0, 1, 2], names=list(SHADES))


@pytest.mark.parametrize("make", [folders, tar_of_folders, tar_of_labels, parquet])
def test_every_form_is_found_by_name(make, tmp_path, recwarn):
    assert list(open_dataset(make(tmp_path), None, 4, MODEL).labels) == EXPECTED
    assert not recwarn.list


def test_label_files_may_name_the_models_classes(tmp_path):
    write(tmp_path / "data", {f"{number}.png": picture(number) for number in range(3)})
    (tmp_path / "labels.csv").write_text("name,label\n0.png,cat\n1.png,golden retriever\n2.png,3\n")
    dataset = open_dataset(tmp_path / "data", tmp_path / "labels.csv", 4, MODEL)
    assert found(dataset) == {"0.png": 2, "1.png": 1, "2.png": 3}
    (tmp_path / "labels.csv").write_text("0.png,cat\n1.png,dog\n2.png,3\n")
    message = refused(tmp_path / "data", tmp_path / "labels.csv", 4, MODEL)
    assert "line 2: the label 'dog' is neither a number nor a class name of the model's" in message
    (tmp_path / "labels.csv").write_text("absent.png,cat\n0.png,cat\n1.png,cat\n2.png,3\n")  # no line of headings
    assert "1 of 4 lines name a picture that is not" in refused(tmp_path / "data", tmp_path / "labels.csv", 4, MODEL)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["cat", "dog", "newt", "bird"], r"1 of 4 names that mean none or several of the model's classes: dog; the mo"),
        (["cat", "horse"], r"horse; the model's are newt, Golden Retriever, cat, bird. Rename them"),
        (["Cat", "cat"], "two names of one class: Cat, cat"),
        (["0", "1", "cat"], "mean none or several of the model's classes: 0, 1"),
    ],
)
def test_names_that_fit_in_part_are_refused(names, text):
    with pytest.raises(DatasetError) as error:
        classes_of(names, 4, "x", own_names(MODEL))
    assert text in str(error.value)


def test_a_name_that_two_classes_have_is_refused():
    with pytest.raises(DatasetError, match="none or several of the model's classes: crane"):
        classes_of(["crane"], 2, "x", own_names(["crane", "crane"]))
    assert classes_of(["crane"], 2, "x", own_names(["Crane", "crane"])) == {"crane": 1}


def test_numbers_are_names_where_the_model_calls_its_classes_so():
    """As models are that were trained on folders in the order of texts."""
    names = tuple(sorted(str(number) for number in range(12)))
    model = own_names(names)
    assert classes_of(sorted(names, key=int), 12, "x", model) == {name: names.index(name) for name in names}
    assert label_of("1", 12, "x", model) == 1
    with pytest.raises(DatasetError, match=r"10 may mean the class of that number, or the one .* calls so, number 2"):
        label_of("10", 12, "x", model)


def test_synsets_are_what_imagenet_calls_so():
    """Imagenette's folders for a model of its ten classes."""
    names = ("parachute", "tench", "English springer")
    synsets = [imagenet_synsets()[imagenet_labels().index(name)] for name in names]
    assert classes_of(sorted(synsets), 3, "x", own_names(names)) == dict(zip(synsets, range(3), strict=True))


def test_a_thousand_classes_of_its_own():
    names = tuple(f"thing {index}" for index in reversed(range(1000)))
    assert classes_of(["thing 999", "thing 0"], 1000, "x", own_names(names)) == {"thing 999": 0, "thing 0": 999}
    assert classes_of(imagenet_synsets()[:2], 1000, "x", own_names(names)) == {"n01440764": 0, "n01443537": 1}


@pytest.mark.parametrize("form", [str, "{}, and so on".format])
def test_imagenets_names_are_known_better_here(form):
    names = own_names([form(name.partition(" (")[0]) for name in imagenet_labels()])
    assert classes_of(["gas_pump", "tench, Tinca tinca", "n01443537"], 1000, "x", names) == {
        "gas_pump": 571,
        "tench, Tinca tinca": 0,
        "n01443537": 1,
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "as those of the model, which says no names"),
        (["class 0", "class 1"], "as those of the model, which says no names"),
        (["apple", "pear"], "as those of the model, whose names are others: apple, pear"),
    ],
)
def test_what_cannot_be_compared_is_said(names, said, tmp_path):
    write(tmp_path, {"a/x.png": picture(1), "b/x.png": picture(2)})
    with pytest.warns(UserWarning, match=f"the classes are taken in this order: a, b, {said}"):
        assert open_dataset(tmp_path, None, 2, names).labels == (0, 1)
    assert "has 2 classes (a, b), the model has 3" in refused(tmp_path, None, 3, None)


def test_a_name_for_each_class(tmp_path):
    write(tmp_path, {"cat/x.png": picture(1)})
    with pytest.raises(ArgumentError, match="4 class_names for 3 classes; give one for each, in order"):
        open_dataset(tmp_path, None, 3, MODEL)
    assert "has 1 classes (cat), the model has 2 classes" in refused(tmp_path, None, None, ["a", "b"])


def test_without_a_model_nothing_is_assumed_of_it(tmp_path):
    write(tmp_path, {"a/x.png": picture(1), "b/x.png": picture(2)})
    with warnings.catch_warnings(action="error"):
        assert open_dataset(tmp_path).labels == (0, 1)
