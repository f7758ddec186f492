"""The 3x3 convolution kernel: both strides, FCU-up's addition on the way in, FCU-down's averages on the way out."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, layouts, make, shape

from conformer_fast import functional as CF
from conformer_fast.kernels import dispatch
from conformer_fast.kernels._tiles import Tile

SMALL = Tile(16, 16, 16, 4, 2)


def _plain(B, H, W, K, N, stride):
    label = f"B{B}-{H}x{W}-K{K}-N{N}-stride{stride}"
    return Sample(label, "conv3x3", (shape(B, H, W, K), shape(N, K, 3, 3), shape(N), stride))


def _coupled(B, h, w, S, K, N, stride):
    label = f"B{B}-{h}x{w}-tokens{S}-K{K}-stride{stride}"
    arguments = (shape(B, h * S, w * S, K), shape(N, K, 3, 3), shape(N), stride, shape(B, h * w, K), S)
    return Sample(label, "conv3x3", arguments)


def _pooled(B, h, w, S, K, N, stride):
    label = f"B{B}-{h}x{w}-pool{S}-K{K}-stride{stride}"
    arguments = (shape(B, h * S * stride, w * S * stride, K), shape(N, K, 3, 3), shape(N), stride, S)
    return Sample(label, "conv3x3_pool", arguments)


SAMPLES = [
    _plain(1, 1, 1, 16, 16, 1),
    _plain(3, 5, 7, 6, 10, 1),
    _plain(3, 5, 7, 6, 10, 2),
    _plain(1, 4, 9, 33, 40, 2),
    _plain(1, 6, 6, 96, 70, 1),
    _coupled(3, 2, 3, 4, 24, 33, 1),
    _coupled(1, 3, 1, 2, 40, 20, 2),
    _coupled(3, 1, 1, 1, 16, 16, 1),
    _coupled(1, 1, 2, 8, 6, 10, 1),
    _coupled(1, 2, 1, 3, 6, 10, 2),
    _pooled(3, 2, 3, 4, 24, 20, 1),
    _pooled(1, 1, 3, 8, 6, 10, 1),
    _pooled(3, 3, 5, 2, 40, 70, 1),
    _pooled(1, 3, 2, 4, 16, 16, 2),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
def test_small_tiles(sample):
    pooled = sample.arguments[-1] ** 2 if sample.operation == "conv3x3_pool" else 1
    check(sample.operation, make(sample, torch.float16), SMALL._replace(m=max(16, pooled)))


@EACH
def test_every_tile(sample):
    arguments = make(sample, torch.float16)
    for tile in dispatch.PLANS[sample.operation](*arguments).tiles:
        check(sample.operation, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(sample.operation, arguments)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
def test_relu_of_nan_is_nan():
    """As PyTorch's is; the interpreter's cannot be anything else."""
    arguments = make(SAMPLES[1], torch.float16)
    arguments[0][0, 0, 0, 0] = torch.nan
    ours = dispatch.PLANS["conv3x3"](*arguments).launch(SMALL)
    torch.testing.assert_close(ours.isnan(), CF.conv3x3(*arguments).isnan())
    assert ours.isnan().any()


def test_tiles_hold_whole_tokens():
    for sample in SAMPLES:
        if sample.operation == "conv3x3_pool":
            plan = dispatch.PLANS["conv3x3_pool"](*make(sample, torch.float16))
            assert plan.tiles
            assert all(tile.m % sample.arguments[-1] ** 2 == 0 for tile in plan.tiles)


@pytest.mark.parametrize(
    ("size", "pool", "reason"), [((6, 6), 3, "2, 4 or 8 pixels a token side, got 3"), ((6, 8), 4, "got 6x8")]
)
def test_averages_that_the_kernel_does_not_take(size, pool, reason):
    sample = Sample("", "conv3x3_pool", (shape(1, *size, 16), shape(16, 16, 3, 3), shape(16), 1, pool))
    assert reason in dispatch.PLANS["conv3x3_pool"](*make(sample, torch.float16)).unsupported
