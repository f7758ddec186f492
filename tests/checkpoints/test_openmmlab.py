"""What mmpretrain's checkpoints say of themselves is listened to where it is plain data, and where not that is said."""

from __future__ import annotations

import argparse
import warnings

import lookalikes
import pytest
import torch

import conformer_fast as cf
from conformer_fast.checkpoints.reading import read_checkpoint
from conformer_fast.model.recipe import MEAN, STD

CONFIG = cf.ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1, mlp_ratio=1, num_classes=3)
NAMES = ("cat", "dog", "newt")
ENGINE = """default_scope = 'mmpretrain'
data_preprocessor = dict(
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    num_classes=3,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=True)
model = dict(
    backbone=dict(arch='tiny', type='Conformer'),
    init_cfg=[dict(layer='Linear', std=0.02, type='TruncNormal')])
train_pipeline = [dict(fill_color=[103.53, 116.28, 123.675], magnitude_std=0.5, type='RandAugment')]
"""
CLS = """img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)
test_pipeline = [dict(type='Normalize', mean=[127.5, 127.5, 127.5], std=[51, 51, 51], to_rgb=True)]
"""


@pytest.fixture(scope="module")
def state():
    return lookalikes.fill(lookalikes.MMPretrainClassifier(CONFIG)).state_dict()


@pytest.fixture
def write(state, tmp_path):
    """Writes a checkpoint with this `meta` and more tensors; returns its path."""

    def written(meta, **tensors):
        path = tmp_path / "epoch_300.pth"
        more = {f"data_preprocessor.{name}": torch.tensor(values).view(-1, 1, 1) for name, values in tensors.items()}
        torch.save({"meta": meta, "state_dict": state | more}, path)
        return path

    return written


def said(path):
    """The recipe that is read, and the warnings. Not Python's of what other tests left open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        return read_checkpoint(path).recipe, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"dataset_meta": {"classes": NAMES}, "cfg": ENGINE}, cf.Recipe(labels=NAMES, mean=MEAN, std=STD)),
        ({"dataset_meta": {"CLASSES": list(NAMES)}, "cfg": ""}, cf.Recipe(labels=NAMES)),
        ({"CLASSES": NAMES, "config": CLS}, cf.Recipe(labels=NAMES, mean=[0.5] * 3, std=[0.2] * 3)),
        (
            {"cfg": repr({"mean": [0, 0, 0], "std": [255, 255, 255], "bgr_to_rgb": True})},
            cf.Recipe(None, None, None, [0] * 3, [1] * 3),
        ),
        ({"epoch": 3, "CLASSES": None, "cfg": argparse.Namespace(mean=[1, 2, 3])}, cf.Recipe()),
        ("no mapping", cf.Recipe()),
    ],
    ids=["mmengine", "its first versions", "mmcls", "as a dict", "nothing", "another's"],
)
def test_what_it_says_is_used(write, meta, expected):
    assert said(write(meta)) == (expected, [])


def test_whatever_reads_it_listens(write, state, tmp_path):
    path = write({"dataset_meta": {"classes": NAMES}, "cfg": ENGINE}, mean=[51.0, 51, 51], std=[102.0, 102, 102])
    expected = cf.Recipe(labels=NAMES, mean=[0.2] * 3, std=[0.4] * 3)  # the tensors are what the model was run with
    model, fast = cf.create_model(CONFIG, path), cf.compile(path, backend="reference")
    assert model.recipe == fast.recipe == expected
    assert fast.labels == NAMES
    cf.load_weights(model, {"state_dict": state, "meta": {"CLASSES": NAMES}})
    assert model.recipe == cf.Recipe(labels=NAMES)
    cf.convert(path, tmp_path / "x.safetensors")
    assert said(tmp_path / "x.safetensors") == (expected, [])


def test_a_detectors_classes_are_not_its_backbones(tmp_path):
    backbone = lookalikes.fill(lookalikes.MMDetectionBackbone(CONFIG)).state_dict()
    weights = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    torch.save({"meta": {"CLASSES": ["person"] * 80, "config": CLS}, "state_dict": weights}, tmp_path / "x.pth")
    assert said(tmp_path / "x.pth") == (cf.Recipe(mean=[0.5] * 3, std=[0.2] * 3), [])


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ({"CLASSES": ["a", "b"]}, "its 2 class names, as the model has 3 classes"),
        ({"CLASSES": "cat"}, "its class names, which are no list"),
        ({"CLASSES": [0, 1, 2]}, "a label must be one line of text, got 0"),
        ({"CLASSES": ["a", "b", "c\n"]}, r"a label must be one line of text, got 'c\n'"),
        ({"cfg": ENGINE.replace("to_rgb=True", "to_rgb=False")}, "does not say to_rgb=True: the model may read blue"),
        ({"cfg": ENGINE.replace("to_rgb=True", "")}, "its mean (123.675, 116.28, 103.53) and std (58.395"),
        ({"cfg": ENGINE + CLS}, "its mean and std, of which it says 2 and 2"),
        ({"cfg": ENGINE.replace("std", "sd")}, "its mean and std, of which it says 1 and 0"),
        ({"cfg": "mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], to_rgb=True"}, "may be of pixels from 0 to 255 or from"),
        ({"cfg": "mean=[127.5], std=[51.0], to_rgb=True"}, "its mean (127.5,) and std (51.0,), as the model reads 3"),
        ({"cfg": "mean=[300, 1, 1], std=[51, 51, 51], to_rgb=True"}, "mean must be numbers from 0 to 1"),
        ({"cfg": "mean=[nan, 1, 1], std=[51, 51, 51], to_rgb=True"}, "mean must be numbers from 0 to 1"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(write, meta, why):
    recipe, (warning,) = said(write(meta))
    assert recipe == cf.Recipe()
    assert warning.startswith(f"{write(meta)}: not used of what it says beside its weights: ")
    assert why in warning
    assert "conformer-fast convert" in warning
    assert "\n" not in warning


def test_what_is_hostile_is_short_and_read_at_once(write):
    cfg = "mean=[" * 100_000 + "std=[" + "9," * 1_000_000
    recipe, (warning,) = said(write({"CLASSES": ["a", "b", "\x1b\n" * 100_000], "cfg": cfg}))
    assert recipe == cf.Recipe()
    assert len(warning) < 1500
    assert "\x1b" not in warning


def test_the_config_is_not_run(write, tmp_path):
    mark = tmp_path / "mark"
    made = f"open({str(mark)!r}, 'w').close()"
    cfg = f"{made}\nmean = [float({made} or 1), 2, 3]\n{ENGINE}"
    assert said(write({"cfg": cfg}))[0].mean == MEAN
    assert not mark.exists()
