"""Whose names a state dict has, and the sizes that its shapes tell."""

import json
from dataclasses import replace
from pathlib import Path

import lookalikes
import pytest
import torch
from weights_samples import CONFIG, DETECTOR_PARTS, REFERENCE, STATES, altered, counters

from conformer_fast.checkpoints.dialects import recognize, to_dialect
from conformer_fast.errors import CheckpointError
from conformer_fast.model.config import PACKAGED, VARIANTS, ConformerConfig
from conformer_fast.model.reference import Conformer

KEYS = json.loads((Path(__file__).parents[1] / "data" / "checkpoint_keys.json").read_text())


def test_two_models_in_one_state_dict_are_refused():
    state = REFERENCE.state_dict()
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="not a Conformer's weights"):
        recognize(both)


def test_another_models_names_are_refused():
    resnet = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    with pytest.raises(
        CheckpointError, match=r"not a Conformer's .* conv1\.weight, layer1\.0\.conv1\.weight, fc\.bias"
    ):
        recognize(resnet)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(CheckpointError, match="not a Conformer's"):
        recognize({})


def test_two_keys_of_one_meaning_are_refused():
    with pytest.raises(CheckpointError, match=r"mean cls_token; one of them is module\.cls_token"):
        recognize(altered(module__cls_token=torch.ones(1, 1, 64)))


def test_detector_parts_are_counted_as_ignored():
    found = recognize(STATES["mmdetection"])
    assert found.ignored == len(DETECTOR_PARTS) + counters(STATES["mmdetection"])
    assert found.num_classes is None
    assert found.config() == replace(CONFIG, num_classes=ConformerConfig().num_classes)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_names_shapes_and_sizes(variant, dialect):
    published = {name: tuple(shape) for name, shape in KEYS[dialect][variant].items()}
    with torch.device("meta"):
        state = to_dialect(Conformer(VARIANTS[variant]).state_dict(), dialect)
        found = recognize({name: torch.empty(shape) for name, shape in published.items()})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published
    assert found.dialect == dialect
    assert found.config() == VARIANTS[variant]


@pytest.mark.parametrize(
    ("dialect", "lookalike"),
    [("official", lookalikes.OfficialConformer), ("mmpretrain", lookalikes.MMPretrainClassifier)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_lookalikes_have_the_published_names_in_order(variant, dialect, lookalike):
    with torch.device("meta"):
        state = lookalike(VARIANTS[variant]).state_dict()
    published = [(name, tuple(shape)) for name, shape in KEYS[dialect][variant].items()]
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == published


@pytest.mark.parametrize("name", [*VARIANTS, *PACKAGED])
def test_a_variants_sizes_tell_its_heads(name, recwarn):
    config = replace((VARIANTS | PACKAGED)[name], num_classes=3)
    with torch.device("meta"):
        state = Conformer(config).state_dict()
    assert recognize(state).config() == config
    assert not recwarn


def test_heads_of_other_sizes_are_assumed_with_a_warning_or_told():
    config = replace(PACKAGED["digits"], mlp_ratio=3)
    found = recognize(Conformer(config).state_dict())
    with pytest.warns(UserWarning, match="1 of 64 channels are assumed"):
        assert found.config().num_heads == 1
    assert found.config(num_heads=4) == config
    odd = recognize(Conformer(replace(config, embed_dim=96)).state_dict())
    with pytest.raises(CheckpointError, match="96 channels, not a multiple of 64"):
        odd.config()


@pytest.mark.parametrize(
    "changes",
    [{"in_channels": 1}, {"mlp_ratio": 3}, {"depth": 6}, {"patch_size": 32}, {"channel_ratio": 2}, {"num_classes": 2}],
    ids=lambda changes: "-".join(changes),
)
def test_sizes_are_read_from_the_shapes(changes):
    config = replace(CONFIG, **changes)
    with torch.device("meta"):
        assert recognize(Conformer(config).state_dict()).config() == config


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cls_token": torch.ones(64)}, r"cls_token has shape \(64,\)"),
        ({"cls_token": torch.ones(1, 1, 0)}, r"cls_token has shape \(1, 1, 0\)"),
        ({"cls_token": None}, "no cls_token"),
        ({"trans_patch_conv__weight": torch.ones(64, 64, 5, 5)}, "patch_size must be a multiple of 16, got 20"),
        ({"conv_1__conv3__weight": torch.ones(96, 16, 1, 1)}, "96 output channels, not a multiple of 64"),
        ({"conv_trans_9__x": torch.ones(1)}, "3 conv_trans blocks, the last one called 9"),
    ],
)
def test_sizes_that_cannot_be_read_are_refused(changes, problem):
    with pytest.raises(CheckpointError, match=problem):
        recognize(altered(**changes)).config()
