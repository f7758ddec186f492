"""What a model was trained for: what can be, and what is said where it is assumed."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import conformer_fast as cf
from conformer_fast.model.class_names import imagenet_labels
from conformer_fast.model.recipe import MEAN, STD, class_labels, input_side, shown_labels, usual_recipe

TEN = cf.ConformerConfig(num_classes=10)
THOUSAND = cf.VARIANTS["small-p16"]
HALF = (0.5, 0.5, 0.5)


def said(function, *args):
    """What it returns, and the warnings it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return function(*args), [str(warning.message) for warning in caught]


def test_it_is_json_and_back():
    recipe = cf.Recipe(64, 2, ["a", "b"], [0, 0.5, 1], STD)
    assert cf.Recipe.from_json(json.loads(json.dumps(recipe.known()))) == recipe
    assert (recipe.labels, recipe.mean) == (("a", "b"), (0.0, 0.5, 1.0))
    assert cf.Recipe.from_json({}) == cf.Recipe()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size must be a whole number, at least 1, got 0"),
        ({"size": 64.0}, "size must be a whole number"),
        ({"size": True}, "size must be a whole number"),
        ({"size": 10**9}, "size must be at most 8750 pixels"),
        ({"num_heads": -1}, "num_heads must be a whole number"),
        ({"num_heads": 10**400}, "num_heads must be at most 16384"),
        ({"labels": "cat"}, "labels must be a list"),
        ({"labels": 3}, "labels must be a list"),
        ({"labels": ["cat", "a\nb"]}, r"a label must be one line of text, got 'a\\nb'"),
        ({"labels": [""]}, "a label must be one line of text"),
        ({"labels": ["\ud800"]}, "a label must be one line of text"),
        ({"labels": [1]}, "a label must be one line of text, got 1"),
        ({"mean": HALF}, "mean and std have a number a channel each, got mean=.* and std=None"),
        ({"mean": HALF, "std": HALF[:2]}, "mean and std have a number a channel each"),
        ({"mean": (), "std": ()}, "mean must have one number a channel, got none"),
        ({"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}, "got 123.675; divide those of pixels"),
        ({"mean": HALF, "std": (0.5, 0, 0.5)}, "std must be numbers from 0.001 to 1, of pixels from 0 to 1, got 0"),
        ({"mean": (float("nan"),), "std": (1,)}, "mean must be numbers from 0 to 1.*got nan"),
        ({"mean": (0,), "std": (10**400,)}, "std must be numbers"),
        ({"mean": ("0",), "std": (1,)}, "mean must be numbers"),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(cf.ArgumentError, match=message):
        cf.Recipe(**fields)


def test_numbers_of_other_libraries():
    values = [0.5, 0.25, 1]
    for mean in (np.float32(values), np.array(values), torch.tensor(values), torch.tensor(values).half(), iter(values)):
        recipe = cf.Recipe(mean=mean, std=np.float16(values))
        assert recipe == cf.Recipe(mean=values, std=values)
        assert [type(value) for value in (*recipe.mean, *recipe.std)] == [float] * 6


@pytest.mark.parametrize("value", [{"scale": 1}, [], None, "x"])
def test_other_json_is_refused(value):
    with pytest.raises(cf.ArgumentError, match="must have labels, mean, num_heads, size, std or some of these"):
        cf.Recipe.from_json(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 4}, "the weights are for num_heads=4, the model has 6; build it with"),
        ({"labels": ["a"]}, "1 labels for a model of 10 classes"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean and std are of 1 channels, the model reads 3"),
        ({"size": 8}, "images of 8 pixels are smaller than one patch of 16"),
    ],
)
def test_it_must_fit_the_model(fields, message):
    with pytest.raises(cf.ArgumentError, match=message):
        cf.Recipe(**fields).check(TEN)


def test_a_backbone_has_no_use_for_labels():
    cf.Recipe(labels=["a"]).check(TEN, heads=False)


def test_one_recipe_over_another():
    recipe = cf.Recipe(size=96, mean=HALF, std=HALF).over(cf.Recipe(64, 2, ["a"], MEAN, STD))
    assert recipe == cf.Recipe(96, 2, ["a"], HALF, HALF)
    assert cf.Recipe().normalization == (MEAN, STD)
    assert recipe.normalization == (HALF, HALF)


def test_what_is_said_is_used_in_silence():
    recipe = cf.Recipe(64, labels=[str(number) for number in range(1000)], mean=HALF, std=HALF)
    assert said(input_side, recipe, THOUSAND) == (64, [])
    assert said(input_side, recipe, THOUSAND, 64) == (64, [])
    assert said(shown_labels, recipe, THOUSAND) == (recipe.labels, [])
    assert said(shown_labels, recipe, THOUSAND, list(recipe.labels)) == (recipe.labels, [])


def test_what_is_assumed_is_said_in_one_line():
    side, texts = said(input_side, cf.Recipe(), THOUSAND)
    assert side == 224
    (text,) = texts
    assert text.startswith(
        "the weights do not say their size, mean and std, labels; assumed where not given: images of 224 pixels, "
        "ImageNet's normalization, ImageNet's class names. To write what is true into the file: conformer-fast convert"
    )
    assert "\n" not in text
    assert said(shown_labels, cf.Recipe(), THOUSAND) == (tuple(imagenet_labels()), [text])  # the same: shown once
    _, (text,) = said(input_side, cf.Recipe(mean=HALF, std=HALF), TEN)
    assert text.startswith("the weights do not say their size; assumed where not given: images of 224 pixels. ")


def test_numbers_of_classes_are_no_assumption():
    assert said(shown_labels, cf.Recipe(), TEN) == (tuple(f"class {number}" for number in range(10)), [])
    assert said(class_labels, cf.Recipe(), THOUSAND) == (tuple(imagenet_labels()), [])
    assert said(input_side, cf.Recipe(mean=HALF, std=HALF), THOUSAND, 96) == (96, [])


def test_the_normalization_is_assumed_whatever_the_size():
    for recipe, asked in ((cf.Recipe(96), None), (cf.Recipe(96), 96), (cf.Recipe(), 96)):
        side, (text,) = said(input_side, recipe, TEN, asked)
        assert side == 96
        assert text.startswith("the weights do not say their mean and std; assumed where not given: ImageNet's normal")
    assert said(input_side, cf.Recipe(96), replace(TEN, in_channels=1)) == (96, [])


def test_a_contradiction_is_said_and_what_was_asked_for_wins():
    recipe = cf.Recipe(64, mean=HALF, std=HALF)
    assert said(input_side, recipe, TEN, 96) == (96, ["images of 96 pixels, as asked for; the weights say 64"])
    recipe = cf.Recipe(labels=list("abcdefghij"))
    names = tuple("ABCDEFGHIJ")
    assert said(shown_labels, recipe, TEN, names) == (names, ["class names as given; the weights say others"])


def test_a_published_variant_is_known():
    recipe = usual_recipe(THOUSAND)
    assert (recipe.size, recipe.num_heads, recipe.mean, recipe.std) == (224, 6, MEAN, STD)
    assert recipe.labels == tuple(imagenet_labels())
    assert usual_recipe(TEN) == cf.Recipe()
    assert cf.create_model("digits", weights="packaged").recipe == usual_recipe(cf.create_model("digits").config)
    assert cf.create_model("digits").recipe == cf.Recipe()  # whoever trains it knows more


def test_a_size_below_a_patch_is_refused_with_the_least():
    """Before anything is compiled for it."""
    config = cf.create_model("digits").config
    with pytest.raises(cf.ArgumentError, match=f"size must be at least {config.patch_size}, got 3"):
        input_side(cf.Recipe(), config, 3)
