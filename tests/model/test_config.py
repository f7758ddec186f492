"""Sizes that fit together are accepted and derived as the paper says; all others are refused by name and value."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from conformer_fast.errors import ArgumentError
from conformer_fast.model.config import MOST, PACKAGED, VARIANTS, ConformerConfig, get_config, name_of
from conformer_fast.model.reference import Conformer

SIZES = [field.name for field in fields(ConformerConfig)]


@pytest.mark.parametrize(
    ("name", "patch_size", "channel_ratio", "embed_dim", "num_heads"),
    [
        ("tiny-p16", 16, 1, 384, 6),
        ("small-p32", 32, 4, 384, 6),
        ("small-p16", 16, 4, 384, 6),
        ("base-p16", 16, 6, 576, 9),
    ],
)
def test_variants_are_the_published_ones(name, patch_size, channel_ratio, embed_dim, num_heads):
    assert VARIANTS[name] == ConformerConfig(
        patch_size=patch_size,
        channel_ratio=channel_ratio,
        embed_dim=embed_dim,
        num_heads=num_heads,
        depth=12,
        mlp_ratio=4,
        num_classes=1000,
        in_channels=3,
    )


def test_there_are_four_variants():
    assert list(VARIANTS) == ["tiny-p16", "small-p32", "small-p16", "base-p16"]


@pytest.mark.parametrize("value", [0, -16, True, 16.0, "16", None, np.nan], ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
        ConformerConfig(**{name: value})


@pytest.mark.parametrize("name", SIZES)
def test_a_size_beyond_any_model_is_refused_by_name(name):
    for value in (MOST[name] + 1, 2**63):
        with pytest.raises(ArgumentError, match=f"{name} must be at most {MOST[name]}, got {value}"):
            ConformerConfig(**{name: value})


def test_the_largest_sizes_can_be_counted():
    """By PyTorch, without memory: nothing overflows before a checkpoint's names are compared."""
    with torch.device("meta"):
        Conformer(ConformerConfig(**MOST | {"depth": 3}))


@pytest.mark.parametrize("depth", [1, 2, 4, 13])
def test_depth_is_three_equal_stages(depth):
    with pytest.raises(ValueError, match=f"depth must be a multiple of 3 .*, got {depth}"):
        ConformerConfig(depth=depth)


@pytest.mark.parametrize("patch_size", [4, 8, 15, 24, 33])
def test_patches_align_with_every_stage(patch_size):
    with pytest.raises(ValueError, match=f"patch_size must be a multiple of 16, got {patch_size}"):
        ConformerConfig(patch_size=patch_size)


def test_heads_divide_the_channels():
    with pytest.raises(ValueError, match="embed_dim 96 is not a multiple of num_heads 5"):
        ConformerConfig(embed_dim=96, num_heads=5)


def test_it_is_a_frozen_value():
    config = ConformerConfig()
    with pytest.raises(FrozenInstanceError):
        config.depth = 3
    assert {config: 1}[ConformerConfig()] == 1


@pytest.mark.parametrize(
    ("patch_size", "strides"), [(16, [4, 2, 1]), (32, [8, 4, 2]), (48, [12, 6, 3])], ids=lambda value: str(value)
)
def test_token_strides_halve_from_stage_to_stage(patch_size, strides):
    config = ConformerConfig(patch_size=patch_size)
    assert config.stem_stride == strides[0]
    assert [config.token_stride(block) for block in (1, 4, 5, 8, 9, 12)] == [s for s in strides for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tiny-p16", [64, 128, 256, 256]),
        ("small-p16", [256, 512, 1024, 1024]),
        ("base-p16", [384, 768, 1536, 1536]),
    ],
)
def test_feature_maps(name, channels):
    config = VARIANTS[name]
    assert config.feature_blocks == (4, 8, 11, 12)
    assert [config.map_channels(block) for block in config.feature_blocks] == channels


@pytest.mark.parametrize(("depth", "blocks"), [(3, (1, 2, 3)), (6, (2, 4, 5, 6)), (9, (3, 6, 8, 9))])
def test_feature_blocks_of_other_depths(depth, blocks):
    assert ConformerConfig(depth=depth).feature_blocks == blocks


def test_stages_are_thirds():
    config = ConformerConfig(depth=6)
    assert [config.stage(block) for block in range(1, 7)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("ratio", [1, 3])
def test_mlp_dim(ratio):
    assert ConformerConfig(embed_dim=96, mlp_ratio=ratio).mlp_dim == 96 * ratio


def test_names_of_sizes():
    for name, config in (VARIANTS | PACKAGED).items():
        assert name_of(config) == name
        assert name_of(replace(config, num_classes=7)) == name
        assert name_of(replace(config, mlp_ratio=3)) is None


def test_get_config_by_name_or_value():
    custom = ConformerConfig(depth=3)
    assert get_config("small-p32") is VARIANTS["small-p32"]
    assert get_config("digits") is PACKAGED["digits"]
    assert get_config(custom) is custom
    assert get_config("tiny-p16", 10) == ConformerConfig(channel_ratio=1, num_classes=10)
    assert VARIANTS["tiny-p16"].num_classes == 1000
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        get_config("tiny-p16", 0)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Conformer_tiny_patch16", "tiny-p16"),
        ("Conformer_small_patch32", "small-p32"),
        ("conformer_small_patch16", "small-p16"),
        ("Conformer_base_patch16", "base-p16"),
    ],
)
def test_the_official_names_are_known(name, ours):
    assert get_config(name) is VARIANTS[ours]


@pytest.mark.parametrize("name", ["conformer_small_patch16_384", "resnet50", "tiny", "Tiny-P16", "", None])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown Conformer") as caught:
        get_config(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in [*VARIANTS, *PACKAGED, "ConformerConfig"])
