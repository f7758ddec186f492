"""A weights file says what its model was trained for, and what reads it listens."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace

import lookalikes
import pytest
import safetensors.torch
import torch

import conformer_fast as cf
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.checkpoints.metadata import KEY
from conformer_fast.checkpoints.reading import read_checkpoint

CONFIG = cf.ConformerConfig(embed_dim=48, num_heads=3, depth=3, channel_ratio=1, mlp_ratio=1, num_classes=3)
RECIPE = cf.Recipe(64, 3, ["a", "b", "c"], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def state():
    return lookalikes.fill(cf.Conformer(CONFIG)).state_dict()


@pytest.fixture
def path(state, tmp_path):
    cf.save_weights(state, tmp_path / "model.safetensors", recipe=RECIPE)
    return tmp_path / "model.safetensors"


def test_it_is_one_value_under_one_key(path, state):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", KEY}
    assert json.loads(metadata[KEY])["size"] == 64
    assert read_checkpoint(path).recipe == RECIPE
    cf.save_weights(state, path)
    assert read_checkpoint(path).recipe == cf.Recipe()


def test_it_is_read_with_the_tensors(path, monkeypatch):
    """Not from the file again, which may be another or shorter by then; who maps a shorter one is killed."""
    load = safetensors.torch.load
    monkeypatch.setattr(safetensors.torch, "load", lambda content: os.truncate(path, 9) or load(content))
    assert read_checkpoint(path).recipe == RECIPE


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_whatever_reads_it_listens(path, dialect, tmp_path, recwarn):
    if dialect == "mmpretrain":
        cf.convert(path, tmp_path / "other.safetensors", dialect)
        path = tmp_path / "other.safetensors"
    model = cf.create_model(CONFIG, path)
    fast = cf.compile(path, backend="reference")  # 48 channels, so three heads could not be guessed
    assert model.recipe == adopt(path).reference.recipe == fast.recipe == cf.compile(model).recipe == RECIPE
    assert fast.config == CONFIG
    assert (fast.side, fast.labels) == (64, RECIPE.labels)
    assert not recwarn.list


def test_loading_weights_is_loading_what_they_say(path, state):
    model = cf.Conformer(CONFIG)
    cf.load_weights(model, path)
    assert model.recipe == RECIPE
    cf.load_weights(model, state)  # which says nothing
    assert model.recipe == cf.Recipe()


@pytest.mark.parametrize("hold", [lambda model: model, lambda model: torch.nn.Sequential(model)])
def test_it_does_not_outlive_its_weights(path, state, hold):
    model = cf.create_model(CONFIG, path)
    other = hold(model).state_dict()
    with pytest.warns(UserWarning, match=r"said \(size, num_heads, labels, mean, std\) is forgotten"):
        hold(model).load_state_dict(other)
    assert model.recipe == cf.Recipe()


def test_what_the_user_set_outlives_them(path, state, recwarn):
    model = cf.create_model(CONFIG, path)
    model.recipe = RECIPE
    copy.deepcopy(model).load_state_dict(state)
    model.load_state_dict(state)
    assert model.recipe == RECIPE
    assert not recwarn.list
    with pytest.raises(cf.ArgumentTypeError, match=r"the recipe must be a Recipe, such as Recipe\(size=224\), got"):
        model.recipe = {"size": 64}
    assert model.recipe == RECIPE


def test_other_heads_are_refused(path):
    message = "model.safetensors: the weights are for num_heads=3, the model has 2; build it with"
    two = replace(CONFIG, num_heads=2)
    with pytest.raises(cf.CheckpointError, match=message):
        cf.create_model(two, path)
    model = cf.Conformer(two)
    before = model.conv1.weight.clone()
    with pytest.raises(cf.CheckpointError, match=message):
        cf.load_weights(model, path)
    assert torch.equal(model.conv1.weight, before)
    assert model.recipe == cf.Recipe()


def test_a_backbone_takes_all_but_the_labels(path):
    model = cf.create_model(CONFIG, path, features_only=True)
    assert (model.recipe.size, model.recipe.mean) == (64, RECIPE.mean)
    assert cf.compile(model, backend="reference").labels == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '{"size": 0}',
            '{"size": 1e3}',
            '{"size": NaN}',
            '{"labels": ["a\\nb"]}',
            '{"labels": ["' + "\\u001b\\n" * 5000 + '"]}',
            '{"labels": "' + "a" * 5000 + '"}',
            '{"side": 64}',
        ),
        *(
            '{"mean": [0, 0, 0], "std": [0, 0, 0]}',
            "[" * 100_000,
            '{"size": ' + "9" * 5000 + "}",
            '{"size": 64}' + " " * (1 << 23),
        ),
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_one_is_refused(state, tmp_path, text):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors.torch.save(state, metadata={KEY: text}))
    for read in (read_checkpoint, lambda path: cf.create_model(CONFIG, path), cf.compile):
        with pytest.raises(
            cf.CheckpointError, match=r"bad.safetensors: its metadata 'conformer_fast' .*save_weights"
        ) as error:
            read(path)
        assert len(str(error.value)) < 1000
        assert str(error.value).isprintable()


def test_a_header_is_quoted_in_short(tmp_path):
    header = b'{"__metadata__": "' + b"a" * 5000 + b'"}'
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(cf.CheckpointError, match=r"bad.safetensors: damaged or not a checkpoint \(.{,200}\); download"):
        read_checkpoint(path)


def test_what_was_set_is_kept_over_what_a_file_says(path):
    model = cf.Conformer(CONFIG)
    model.recipe = cf.Recipe(size=96, num_heads=3)
    with pytest.warns(
        UserWarning, match=r"^size of the recipe as set; the weights' file says otherwise[^\n]*$"
    ) as said:
        cf.load_weights(model, path)
    assert [warning.filename for warning in said] == [__file__]
    assert model.recipe == cf.Recipe(size=96).over(RECIPE)
    with pytest.warns(UserWarning, match=r"said \(labels, mean, std\) is forgotten"):
        model.load_state_dict(model.state_dict())
    assert model.recipe == cf.Recipe(size=96, num_heads=3)


@pytest.mark.filterwarnings("error")
def test_a_recipe_that_was_set_and_the_same_file_say_nothing(path, state):
    model = cf.Conformer(CONFIG)
    model.recipe = cf.Recipe(size=64)
    cf.load_weights(model, path)
    assert model.recipe == RECIPE
    other = cf.Conformer(CONFIG)
    other.recipe = RECIPE
    cf.load_weights(other, state)
    assert other.recipe == RECIPE


@pytest.mark.filterwarnings("error")
def test_weights_that_are_not_loaded_forget_nothing(path):
    model = cf.create_model(CONFIG, path)
    for whole in (model, torch.nn.Sequential(torch.nn.Linear(1, 1), model)):
        whole.load_state_dict({}, strict=False)
        assert model.recipe == RECIPE


def test_part_of_other_weights_is_other_weights(path):
    model = cf.create_model(CONFIG, path)
    with pytest.warns(UserWarning, match="is forgotten"):
        torch.nn.Sequential(model).load_state_dict({"0.cls_token": model.cls_token}, strict=False)
    assert model.recipe == cf.Recipe()


@pytest.mark.filterwarnings("error")
def test_convert_that_refuses_says_nothing_else(path, tmp_path):
    with pytest.raises(cf.ArgumentError, match="2 labels for a model of 3 classes"):
        cf.convert(path, tmp_path / "new.safetensors", recipe=cf.Recipe(labels=["a", "b"]))


def test_labels_of_another_number_of_classes_are_refused(state, tmp_path):
    path = tmp_path / "two.safetensors"
    path.write_bytes(safetensors.torch.save(state, metadata={KEY: '{"labels": ["a", "b"], "num_heads": 3}'}))
    with pytest.raises(cf.CheckpointError, match=r"two.safetensors: 2 labels for a model of 3 classes"):
        cf.compile(path)
    with pytest.raises(cf.ArgumentError, match="2 labels for a model of 3 classes"):
        cf.save_weights(state, tmp_path / "new.safetensors", recipe=cf.Recipe(labels=["a", "b"]))
    with pytest.raises(cf.ArgumentError, match="2 labels for a model of 3 classes"):
        cf.convert(path, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
    cf.convert(path, tmp_path / "new.safetensors", recipe=RECIPE)
    assert read_checkpoint(tmp_path / "new.safetensors").recipe == RECIPE


def test_convert_keeps_it_and_takes_what_a_pickle_cannot_say(state, path, tmp_path):
    target = tmp_path / "target.safetensors"
    cf.convert(path, target, recipe=cf.Recipe(size=96))
    assert read_checkpoint(target).recipe == cf.Recipe(size=96).over(RECIPE)
    torch.save(state, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth").recipe == cf.Recipe()
    cf.convert(tmp_path / "model.pth", target, recipe=RECIPE)
    assert read_checkpoint(target).recipe == RECIPE
    with pytest.raises(cf.CheckpointError, match="embed_dim 48 is not a multiple of num_heads 5"):
        cf.convert(path, target, recipe=cf.Recipe(num_heads=5))
