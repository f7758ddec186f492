"""The product kernel in each of its roles: projections, 1x1 convolutions, FCU-up and the patch embedding."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, fine, layouts, make, shape
from kernel_samples import LINEAR, PYRAMID

from benchmarks.judge import outputs, poisoned_memory
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF

SMALL = Tile(16, 16, 16, 4, 2)  # several steps and blocks in each direction, and ragged ends, on small sizes

EACH = pytest.mark.parametrize("sample", [*LINEAR, *PYRAMID[:2]], ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
@DTYPES
def test_small_tiles(sample, dtype):
    check(sample.operation, make(sample, dtype), SMALL)


@EACH
def test_blocks_in_pieces(sample):
    check(sample.operation, make(sample, torch.float16), Tile(16, 48, 16, 4, 2))


@pytest.mark.parametrize("operation", ["linear", "conv1x1"])
def test_wide_blocks_in_pieces(operation):
    """Those of 192 columns, and of 256 that add something on their way out."""
    if operation == "linear":
        sample = Sample("", "linear", (shape(40, 24), shape(400, 24), shape(400), True, fine(40, 400)))
    else:
        sample = Sample(
            "", "conv1x1", (shape(1, 6, 6, 24), shape(400, 24), shape(400), 1, True, None, shape(1, 4, 400), 3)
        )
    for n in (192, 256):
        check(operation, make(sample, torch.float16), Tile(32, n, 16, 4, 2))


@EACH
def test_every_tile(sample):
    arguments = make(sample, torch.float16)
    for tile in dispatch.PLANS[sample.operation](*arguments).tiles:
        check(sample.operation, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(sample.operation, arguments, SMALL)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
@pytest.mark.parametrize("sample", [LINEAR[8], LINEAR[12], LINEAR[19]], ids=str)
def test_relu_of_nan_is_nan(sample):
    """As PyTorch's is; the interpreter's cannot be anything else."""
    arguments = make(sample, torch.float16)
    arguments[0].view(-1)[-1] = torch.nan
    ours = dispatch.PLANS[sample.operation](*arguments).launch(SMALL)
    torch.testing.assert_close(ours.isnan(), getattr(CF, sample.operation)(*arguments).isnan())
    assert ours.isnan().any()


def test_patch_embedding_follows_a_changed_weight():
    """Its weight is reordered once and kept; a change in place makes it anew."""
    arguments = make(LINEAR[-3], torch.float32)
    check("patch_embed", arguments)
    arguments[2].mul_(2)
    check("patch_embed", arguments)


def test_poison_is_seen():
    """The tests' own trap: memory that a kernel leaves alone is NaN."""
    arguments = make(LINEAR[0], torch.float32)
    plan = dispatch.PLANS["linear"](*arguments)
    with poisoned_memory():
        (whole,) = outputs(plan.launch(SMALL))
        assert torch.empty(3).isnan().all()
    assert whole.isfinite().all()


def test_unsupported_dtypes_are_named():
    arguments = make(LINEAR[0], torch.float64)
    assert "float64" in dispatch.PLANS["linear"](*arguments).unsupported
