"""The product kernel in each of its roles: projections, 1x1 convolutions, FCU-up and the patch embedding."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, fine, layouts, make, shape

from benchmarks.judge import outputs, poisoned_memory
from conformer_fast import functional as CF
from conformer_fast.kernels import dispatch
from conformer_fast.kernels._tiles import Tile

SMALL = Tile(16, 16, 16, 4, 2)  # several steps and blocks in each direction, and ragged ends, on small sizes

SAMPLES = [
    Sample("plain", "linear", (shape(3, 5, 24), shape(20, 24), shape(20))),
    Sample("one-row", "linear", (shape(1, 1, 24), shape(20, 24), shape(20))),
    Sample("matrix", "linear", (shape(70, 33), shape(17, 33), shape(17))),
    Sample("gelu", "linear", (shape(2, 49, 64), shape(130, 64), shape(130), True)),
    Sample("norm", "linear", (shape(3, 50, 96), shape(40, 96), shape(40), False, None, shape(96), shape(96), 1e-6)),
    Sample(
        "fine-norm", "linear", (fine(3, 50, 100), shape(40, 100), shape(40), True, None, fine(100), fine(100), 1e-6)
    ),
    Sample("residual", "linear", (shape(3, 5, 24), shape(20, 24), shape(20), False, shape(3, 5, 20))),
    Sample("fine-residual", "linear", (shape(1, 197, 24), shape(20, 24), shape(20), False, fine(1, 197, 20))),
    Sample(
        "everything",
        "linear",
        (fine(3, 67, 40), shape(72, 40), shape(72), True, fine(3, 67, 72), fine(40), fine(40), 1e-5),
    ),
    Sample("1x1-image", "conv1x1", (shape(1, 1, 1, 16), shape(20, 16), shape(20))),
    Sample("B3-5x7", "conv1x1", (shape(3, 5, 7, 96), shape(33, 96), shape(33))),
    Sample("linear", "conv1x1", (shape(3, 5, 7, 16), shape(64, 16), shape(64), 1, False)),
    Sample("strided", "conv1x1", (shape(3, 5, 7, 40), shape(33, 40), shape(33), 2, False)),
    Sample("residual", "conv1x1", (shape(3, 8, 8, 16), shape(64, 16), shape(64), 1, True, shape(3, 8, 8, 64))),
    Sample("strided-residual", "conv1x1", (shape(3, 5, 8, 6), shape(10, 6), shape(10), 2, True, shape(3, 3, 4, 10))),
    Sample("N9", "fcu_up", (fine(3, 10, 48), shape(20, 48), shape(20))),
    Sample("N1", "fcu_up", (shape(1, 2, 24), shape(6, 24), shape(6))),
    Sample("4x4", "patch_embed", (shape(2, 8, 12, 10), fine(1, 1, 24), shape(24, 10, 4, 4), shape(24))),
    Sample("8x8", "patch_embed", (shape(1, 8, 8, 16), fine(1, 1, 100), shape(100, 16, 8, 8), shape(100))),
    Sample("one-pixel", "patch_embed", (shape(3, 2, 3, 16), shape(1, 1, 24), shape(24, 16, 1, 1), shape(24))),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
@DTYPES
def test_small_tiles(sample, dtype):
    check(sample.operation, make(sample, dtype), SMALL)


@EACH
def test_every_tile(sample):
    arguments = make(sample, torch.float16)
    for tile in dispatch.PLANS[sample.operation](*arguments).tiles:
        check(sample.operation, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(sample.operation, arguments, SMALL)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e5], ids=str)
def test_norm_of_rows_far_from_zero(mean):
    """A class token that doubles in each block: its mean may be far larger than its spread."""
    sample = Sample("", "linear", (fine(1, 33, 96), shape(40, 96), shape(40), False, None, fine(96), fine(96), 1e-6))
    arguments = make(sample, torch.float16)
    arguments[0] += mean
    check("linear", arguments, SMALL)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
@pytest.mark.parametrize("sample", [SAMPLES[9], SAMPLES[13], SAMPLES[15]], ids=str)
def test_relu_of_nan_is_nan(sample):
    """As PyTorch's is; the interpreter's cannot be anything else."""
    arguments = make(sample, torch.float16)
    arguments[0].view(-1)[-1] = torch.nan
    ours = dispatch.PLANS[sample.operation](*arguments).launch(SMALL)
    torch.testing.assert_close(ours.isnan(), getattr(CF, sample.operation)(*arguments).isnan())
    assert ours.isnan().any()


def test_rows_of_one_value_are_normalised_to_the_bias():
    sample = Sample("", "linear", (fine(2, 24), shape(20, 24), shape(20), False, None, fine(24), fine(24), 1e-6))
    arguments = make(sample, torch.float32)
    arguments[0][:] = torch.tensor([[3.0], [-7e4]])
    check("linear", arguments, SMALL)


def test_patch_embedding_follows_a_changed_weight():
    """Its weight is reordered once and kept; a change in place makes it anew."""
    arguments = make(SAMPLES[-3], torch.float32)
    check("patch_embed", arguments)
    arguments[2].mul_(2)
    check("patch_embed", arguments)


def test_poison_is_seen():
    """The tests' own trap: memory that a kernel leaves alone is NaN."""
    arguments = make(SAMPLES[0], torch.float32)
    plan = dispatch.PLANS["linear"](*arguments)
    with poisoned_memory():
        (whole,) = outputs(plan.launch(SMALL))
        assert torch.empty(3).isnan().all()
    assert whole.isfinite().all()


def test_unsupported_dtypes_are_named():
    arguments = make(SAMPLES[0], torch.float64)
    assert "float64" in dispatch.PLANS["linear"](*arguments).unsupported
