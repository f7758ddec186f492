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
        (["cat", "horse"], r"horse; the model's are newt, Golden Retriever, cat, bird; give a label file"),
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
    for others in (imagenet_synsets()[:2], imagenet_labels()[:2]):  # ImageNet's order is not this model's
        with pytest.raises(DatasetError, match="none of them is among the model's: thing 999, thing 998"):
            classes_of(others, 1000, "x", own_names(names))
        with pytest.raises(DatasetError, match="is neither a number nor a class name of the model's, which are thing"):
            label_of(others[0], 1000, "x", own_names(names))


def test_imagenets_classes_in_another_order():
    """They have their synsets; a name that two classes of ImageNet have, has none."""
    names = [name.partition(" (")[0] for name in reversed(imagenet_labels())]
    model = own_names(names)
    assert classes_of(["n01440764", "n15075141"], 1000, "x", model) == {"n01440764": 999, "n15075141": 0}
    assert label_of("n01440764", 1000, "x", model) == label_of("tench", 1000, "x", model) == 999
    crane = imagenet_synsets()[517]
    with pytest.raises(DatasetError, match="neither a number nor a class name of the model's"):
        label_of(crane, 1000, "x", model)
    with pytest.raises(DatasetError, match=f"mean none or several of the model's classes: {crane}"):
        classes_of(["n01440764", crane], 1000, "x", model)


def test_synsets_alone_are_what_the_model_calls_so(tmp_path):
    write(tmp_path / "data", {"a.png": picture(1), "b.png": picture(2)})
    (tmp_path / "labels.txt").write_text("n01440764\nn15075141\n")
    names = list(reversed(imagenet_labels()))
    assert open_dataset(tmp_path / "data", tmp_path / "labels.txt", 1000, names).labels == (999, 0)


SIGNS = ["20 km/h", "30 km/h", *(f"sign {index}" for index in range(2, 40)), "stop sign", "7 up", "n01440764 tench"]


@pytest.mark.parametrize("form", ["{},{}", "{}\t{}", "{} {}"])
def test_names_that_begin_with_a_number_or_synset_and_have_spaces(tmp_path, form):
    labels = {"a.png": "30 km/h", "b b.png": "stop sign", "c": "7 up", "d.png": "n01440764 tench", "e.png": "5"}
    write(tmp_path / "data", dict.fromkeys(("a.png", "b b.png", "c.png", "d.png", "e.png"), picture(1)))
    lines = [form.format(name, label) for name, label in labels.items()]
    for heading in ([], [form.format("file", "sign")]):  # no line of a picture is a heading
        (tmp_path / "labels.txt").write_text("\n".join(heading + lines))
        assert open_dataset(tmp_path / "data", tmp_path / "labels.txt", 43, SIGNS).labels == (1, 40, 41, 42, 5)


def test_a_first_line_of_a_picture_is_no_heading(tmp_path):
    write(tmp_path / "data", {"a.png": picture(1)})
    for line in ("a.png halt sign", "absent.png halt"):
        (tmp_path / "labels.txt").write_text(f"{line}\na.png stop sign")
        text = "line 1: the label 'halt sign' is neither" if line[:2] == "a." else "1 of 2 lines name a picture that is"
        assert text in refused(tmp_path / "data", tmp_path / "labels.txt", 43, SIGNS)


@pytest.mark.parametrize("folder", ["30_km_h", "30 km-h", "30-KM_H"])
def test_a_folders_name_has_no_slash(folder):
    assert classes_of([folder], 43, "x", own_names(SIGNS)) == {folder: 1}
    assert classes_of(["T-shirt_top"], 2, "x", own_names(["Trouser", "T-shirt/top"])) == {"T-shirt_top": 1}
    assert classes_of(["a-b", "a_b"], 2, "x", own_names(["a_b", "a-b"])) == {"a-b": 1, "a_b": 0}  # as written


@pytest.mark.parametrize("text", ["0_3", "\u0663", " 3", "+3", "3.0", "--1", "", "\u00b2"])
def test_only_digits_are_numbers(text):
    for names in (None, own_names(MODEL)):
        with pytest.raises(DatasetError, match="is neither a number nor a class name of the model's"):
            label_of(text, 4, "x", names)
    assert label_of("03", 4, "x") == 3


def test_a_sign_is_no_space():
    with pytest.raises(DatasetError, match="the label -1 means unlabeled"):
        label_of("-1", 10, "x", own_names([str(digit) for digit in range(10)]))
    for text, is_what in {"-2": "0 ... 9", "9" * 5000: "0 ... 9"}.items():
        with pytest.raises(DatasetError, match=f"is none of {is_what}"):
            label_of(text, 10, "x")


def test_a_label_that_several_classes_are_called():
    with pytest.raises(DatasetError, match="'CRANE' may mean several of the model's classes: 0, 1; write the number"):
        label_of("CRANE", 2, "x", own_names(["Crane", "crane"]))


def test_some_of_a_models_own_numbers(tmp_path):
    """In a tar file as in folders; what no names say is refused."""
    digits = [str(digit) for digit in range(10)]
    contents = {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"1"}
    tar = write_tar(tmp_path / "x.tar", contents)
    assert open_dataset(tar, None, 10, digits).labels == (0, 1)
    write(tmp_path / "data", {"0/a.png": picture(1), "1/b.png": picture(2)})
    assert open_dataset(tmp_path / "data", None, 10, digits).labels == (0, 1)
    for names in (None, [f"thing {digit}" for digit in digits]):
        assert "labels 0 ... 1 alone, the model has 10 classes" in refused(tar, None, 10, names)


def test_what_can_be_done_about_parquet_files(tmp_path):
    model = ["cat", "dog", "eel"]
    for names, labels, class_names in [
        (["apple", "pear"], [0, 1], model),  # none is the model's
        (["cat", "pear"], [0, 1], model),  # one is
        (["apple", "pear"], [0, 1], None),  # too few
        (["1", "2"], [0, 1], None),
        (["0", "1"], [0, 1], None),
        (None, [0, 1], None),
    ]:
        file = write_parquet(tmp_path / "x.parquet", [picture(1)] * 2, labels, names=names)
        message = refused(file, None, 3, class_names)
        assert message.endswith(
            " write what the model calls its classes into the file's schema (Hugging Face's ClassLabel), or the right "
            "numbers and no names"
        )
        assert "label file" not in message
        assert "folder" not in message


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
    ],
)
def test_what_cannot_be_compared_is_said(names, said, tmp_path):
    write(tmp_path, {"a/x.png": picture(1), "b/x.png": picture(2)})
    with pytest.warns(UserWarning, match=f"the classes are taken in this order: a, b, {said}"):
        assert open_dataset(tmp_path, None, 2, names).labels == (0, 1)
    assert "has 2 classes (a, b), the model has 3" in refused(tmp_path, None, 3, None)


def test_names_that_are_none_of_the_models_are_refused(tmp_path):
    write(tmp_path, {"a/x.png": picture(1), "b/x.png": picture(2)})
    message = refused(tmp_path, None, 2, ["apple", "pear"])
    assert message == (
        f"{tmp_path} has the classes a, b, and none of them is among the model's: apple, pear; give a label file, or "
        f"folders that are called as the model's classes"
    )


def test_a_name_for_each_class(tmp_path):
    write(tmp_path, {"cat/x.png": picture(1)})
    with pytest.raises(ArgumentError, match="4 class_names for 3 classes; give one for each, in order"):
        open_dataset(tmp_path, None, 3, MODEL)
    assert "has 1 classes (cat), the model has 2 classes" in refused(tmp_path, None, None, ["class 0", "class 1"])


def test_without_a_model_nothing_is_assumed_of_it(tmp_path):
    write(tmp_path, {"a/x.png": picture(1), "b/x.png": picture(2)})
    with warnings.catch_warnings(action="error"):
        assert open_dataset(tmp_path).labels == (0, 1)
