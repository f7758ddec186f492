"""Products whose programs hold whole rows, and their norms: FCU-down and the attention projection."""

import pytest
import torch
from kernel_checks import DTYPES, check, layouts, make
from kernel_samples import WHOLE_ROWS, fcu_down_sample, linear_norm_sample

from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.tiles import Tile

SPLIT = Tile(16, 16, 16, 4, 2)  # columns too, and a kernel of its own for the norm
SMALL = Tile(16, 0, 16, 4, 2)  # whole rows; several blocks and steps, and ragged ends, on small sizes


EACH = pytest.mark.parametrize("sample", WHOLE_ROWS, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check(sample.operation, make(sample, dtype))


@EACH
def test_small_tiles(sample):
    check(sample.operation, make(sample, torch.float16), SMALL)


@EACH
def test_every_tile(sample):
    arguments = make(sample, torch.float16)
    for tile in dispatch.PLANS[sample.operation](*arguments).tiles:
        check(sample.operation, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(sample.operation, arguments, SMALL)


@pytest.mark.parametrize("mean", [1e2, 1e4], ids=str)
def test_inner_norm_of_rows_far_from_zero(mean):
    arguments = make(fcu_down_sample("", 2, (2, 3), 100, 40, 1), torch.float32)
    arguments[3] += mean
    check("fcu_down", arguments, SMALL)


@pytest.mark.parametrize("tile", [SMALL, SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e5], ids=str)
def test_norm_of_rows_far_from_zero(mean, tile):
    """A class token that doubles in each block: its mean may be far larger than its spread."""
    arguments = make(linear_norm_sample("", (1, 33), 96, 40), torch.float16)
    arguments[3] += mean
    check("linear_norm", arguments, tile)


@pytest.mark.parametrize("tile", [SMALL, SPLIT], ids=["whole", "split"])
def test_rows_of_one_value_are_normalized_to_the_bias(tile):
    arguments = make(linear_norm_sample("", (2,), 24, 40), torch.float32)
    arguments[0][:] = 0
    arguments[2][:] = 0
    arguments[3][:] = torch.tensor([[3.0], [-7e4]])
    check("linear_norm", arguments, tile)


def plan(chip: int, B: int, C: int, K: int, dtype: torch.dtype, S: int = 1):
    def tensor(*sizes: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    tokens, norm = tensor(B, 197, C, dtype=torch.float32), tensor(C, dtype=torch.float32)
    with assuming(CHIPS[chip]):
        arguments = tensor(B, 14 * S, 14 * S, K), tokens, tensor(C, K), tensor(C), norm, norm, 1e-6, S, norm, norm, 1e-6
        return dispatch.PLANS["fcu_down"](*arguments)


@pytest.mark.parametrize("chip", CHIPS)
def test_averages_take_no_tiles_whose_products_read_registers_late(chip):
    """64 rows are for operands from shared memory alone: see must_wait; a B200's compiler drops the kernel."""
    for S in (2, 4, 8):
        assert max(tile.m for tile in plan(chip, 128, 576, 96, torch.float16, S).tiles) == 32


def test_one_image_is_spread_over_programs_and_a_batch_uses_hopper():
    assert plan(90, 1, 384, 256, torch.float16).tiles[0].m == 16
    assert plan(90, 128, 384, 256, torch.float16).tiles[0].m == 64
    assert plan(90, 128, 576, 96, torch.float16).tiles[0] == Tile(64, 0, 32, 8, 3)
    assert plan(90, 128, 576, 96, torch.float32).tiles[0].m == 16
    assert plan(80, 128, 576, 96, torch.float16).tiles[0].m == 32


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("C", [24, 384, 576, 1024])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_stage_fits_shared_memory(chip, C, dtype):
    for tile in plan(chip, 8, C, 384, dtype).tiles:
        assert (tile.m + C) * tile.k * dtype.itemsize <= CHIPS[chip].shared


def plan_projection(chip: int, M: int, C: int, dtype: torch.dtype = torch.float16):
    rows, weight, bias = (torch.empty(size, dtype=dtype, device="meta") for size in ((M, C), (C, C), (C,)))
    residual, norm = (torch.empty(size, device="meta") for size in ((M, C), (C,)))
    with assuming(CHIPS[chip]):
        return dispatch.PLANS["linear_norm"](rows, weight, bias, residual, norm, norm, 1e-6)


def test_a_projection_of_a_few_rows_is_split_by_columns_too():
    few, many = (plan_projection(90, images * 197, 384).tiles for images in (1, 128))
    assert few[0].n > 0
    assert many[0].n == 0
    assert {tile.n > 0 for tile in few} == {tile.n > 0 for tile in many} == {True, False}


def test_a_projection_of_rows_that_no_program_can_hold_is_split():
    found = plan_projection(90, 128 * 197, 1040)
    assert found.unsupported is None
    assert all(tile.n for tile in found.tiles)


def test_rows_that_no_program_can_hold():
    assert plan(90, 1, 1024, 64, torch.float16).unsupported is None
    assert "1040 channels do not fit" in plan(90, 1, 1040, 64, torch.float16).unsupported
