"""The 3x3 convolution kernel: both strides, FCU-down's averages on the way out."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, layouts, make, shape
from kernel_samples import CONV3X3, PYRAMID

from conformer_fast.kernels import dispatch
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF

SMALL = Tile(16, 16, 16, 4, 2)


EACH = pytest.mark.parametrize("sample", [*CONV3X3, PYRAMID[2]], ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
def test_small_tiles(sample):
    pooled = sample.arguments[-1] ** 2 if sample.operation == "conv3x3_pool" else 1
    check(sample.operation, make(sample, torch.float16), SMALL._replace(m=max(16, pooled)))


@EACH
def test_blocks_in_pieces(sample):
    pooled = sample.arguments[-1] ** 2 if sample.operation == "conv3x3_pool" else 1
    check(sample.operation, make(sample, torch.float16), SMALL._replace(m=max(16, pooled), n=48))


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
    arguments = make(CONV3X3[1], torch.float16)
    arguments[0][0, 0, 0, 0] = torch.nan
    ours = dispatch.PLANS["conv3x3"](*arguments).launch(SMALL)
    torch.testing.assert_close(ours.isnan(), CF.conv3x3(*arguments).isnan())
    assert ours.isnan().any()


def test_tiles_hold_whole_tokens():
    for sample in CONV3X3:
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
