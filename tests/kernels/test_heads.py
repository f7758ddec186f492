"""The two heads and the pooling before them."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, fine, layouts, make, shape

from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.tiles import Tile

SMALL = {  # several blocks and steps, and ragged ends, on small sizes
    "heads": Tile(2, 32, 32, 4, 2),
    "pool": Tile(16, 1, 16, 4, 1),
}


def samples(B: int, H: int, W: int, K: int, T: int, C: int, classes: int, tokens=fine) -> list[Sample]:
    label = f"B{B}-{H}x{W}-K{K}-T{T}-C{C}-N{classes}" + ("" if tokens is fine else "-coarse-tokens")
    pooled = shape(B, H, W, K), tokens(B, T, C), tokens(C), tokens(C), 1e-6
    weights = shape(classes, K), shape(classes), shape(classes, C), shape(classes)
    return [Sample(label, "heads", (*pooled, *weights)), Sample(label, "pool", pooled)]


SAMPLES = [
    *samples(1, 1, 1, 16, 2, 24, 1),
    *samples(3, 7, 7, 100, 5, 100, 20),
    *samples(1, 7, 7, 256, 2, 384, 33),
    *samples(1, 1, 2, 48, 2, 48, 1000),
    *samples(3, 2, 3, 24, 1, 576, 40, tokens=shape),
    *samples(17, 3, 3, 33, 3, 33, 11),
    *samples(1, 9, 13, 24, 2, 48, 50),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
@DTYPES
def test_small_tiles(sample, dtype):
    check(sample.operation, make(sample, dtype), SMALL[sample.operation])


@EACH
def test_every_tile_of_every_chip(sample):
    arguments = make(sample, torch.float16)
    tiles = set()
    for chip in CHIPS.values():
        with assuming(chip):
            tiles.update(dispatch.PLANS[sample.operation](*arguments).tiles)
    for tile in sorted(tiles):
        check(sample.operation, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(sample.operation, arguments)


@pytest.mark.parametrize("operation", [0, 1], ids=["heads", "pool"])
@pytest.mark.parametrize("magnitude", [1e6, 1e-3], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e6], ids=str)
def test_norm_of_any_class_token(operation, mean, magnitude):
    """It doubles in each block: it may be large, and its mean may be far larger than its spread."""
    sample = samples(3, 2, 2, 24, 2, 300, 11)[operation]
    arguments = make(sample, torch.float16)
    arguments[1] = arguments[1] * magnitude + mean
    check(sample.operation, arguments)


@pytest.mark.parametrize("operation", [0, 1], ids=["heads", "pool"])
def test_mean_of_large_values(operation):
    """Their sum is beyond what fp16 holds."""
    sample = samples(3, 7, 7, 24, 2, 24, 11)[operation]
    arguments = make(sample, torch.float16)
    arguments[0] += 2e3  # 49 of them; the scores stay within
    check(sample.operation, arguments)


def test_only_class_tokens_are_read():
    for sample in samples(3, 2, 2, 24, 5, 24, 11):
        arguments = make(sample, torch.float32)
        arguments[1][:, 1:] = torch.nan
        check(sample.operation, arguments)


def plan(chip: int, B: int, K: int, C: int, dtype: torch.dtype = torch.float16):
    sample = samples(B, 7, 7, K, 197, C, 1000)[0]
    shapes = [
        torch.empty(argument, dtype=dtype, device="meta") if isinstance(argument, tuple) else argument
        for argument in sample.arguments
    ]
    with assuming(CHIPS[chip]):
        return dispatch.PLANS["heads"](*shapes)


def test_one_image_is_spread_over_programs_and_a_batch_shares_weights():
    assert plan(90, 1, 1024, 384).tiles[0][:2] == (1, 16)
    assert plan(90, 128, 1536, 576).tiles[0][:2] == (8, 256)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("B", [1, 8, 128])
def test_tiles_fit_the_chip(chip, dtype, B):
    tiles = plan(chip, B, 1536, 576, dtype).tiles
    assert len(set(tiles)) == len(tiles) > 1
    for tile in tiles:
        assert 2 * (tile.m * 64 + tile.n) * tile.k * dtype.itemsize < CHIPS[chip].shared
