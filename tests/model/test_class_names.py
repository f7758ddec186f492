"""Class names: complete, unique and in the official order."""

from importlib.resources import files

import pytest

from conformer_fast.model.class_names import imagenet_labels, labels_for
from conformer_fast.model.config import VARIANTS, get_config


def synsets() -> list[str]:
    text = files("conformer_fast").joinpath("data/imagenet_classes.txt").read_text(encoding="utf-8")
    return [line.split("\t")[0] for line in text.splitlines()]


def test_imagenet_names_are_1000_and_differ_whatever_the_case():
    names = imagenet_labels()
    assert len(names) == 1000
    assert len({name.lower() for name in names}) == 1000
    assert all(name and name == name.strip() for name in names)


def test_official_order_is_that_of_the_synsets():
    assert len(set(synsets())) == 1000
    assert synsets() == sorted(synsets())


@pytest.mark.parametrize(
    ("index", "synset", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane (bird)"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (387, "n02509815", "lesser panda"),
        (517, "n03126707", "crane (machine)"),
        (638, "n03710637", "maillot (tights)"),
        (639, "n03710721", "maillot (tank suit)"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_known_classes(index, synset, name):
    assert (synsets()[index], imagenet_labels()[index]) == (synset, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_have_imagenet_names(variant):
    assert labels_for(variant) == imagenet_labels()


def test_digits():
    assert labels_for("digits") == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_other_models_get_numbered_classes_even_with_ten_of_them():
    assert labels_for(get_config("tiny-p16", num_classes=10))[7] == "class 7"
    assert labels_for(get_config("digits", num_classes=3)) == ["class 0", "class 1", "class 2"]


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown Conformer 'huge'"):
        labels_for("huge")
