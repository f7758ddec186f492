"""The tile rules: pure functions of sizes and chip."""

import pytest
import torch

from conformer_fast.kernels.chips import CHIPS, assuming, chip_of
from conformer_fast.kernels.tiles import for_matmul, power_of_two

EACH_CHIP = pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: f"sm{chip.capability}")


@pytest.mark.parametrize(("size", "power"), [(1, 16), (16, 16), (17, 32), (197, 256), (256, 256)])
def test_power_of_two(size, power):
    assert power_of_two(size) == power


def test_small_products_get_small_tiles_and_large_ones_large():
    chip = CHIPS[90]

    def rule(M, N, K):
        return for_matmul(M, N, K, chip, element_size=2, computed=False)[0]

    assert rule(197, 384, 1536).m * rule(197, 384, 1536).n < 64 * 64  # one image's tokens: many programs
    assert (rule(128 * 197, 1152, 384).m, rule(128 * 197, 1152, 384).n) == (128, 128)
    assert rule(128 * 3136, 16, 64).n == 16  # nothing is computed for columns that are not there


@EACH_CHIP
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("row_size", "computed"), [(None, False), (None, True), (4, True)])
def test_tiles_fit_the_chip(chip, size, row_size, computed):
    wide = ((256, 96, 8), (256, 128, 8), (128, 192, 8), (128, 256, 8), (256, 192, 16))
    for M, N, K in [(1, 1, 1), (197, 384, 1536), (25216, 1152, 384), (401408, 16, 64), (6272, 384, 3456)]:
        tiles = for_matmul(M, N, K, chip, element_size=size, row_size=row_size, computed=computed, wide=wide)
        assert tiles
        assert len(set(tiles)) == len(tiles)
        for tile in tiles:
            assert tile.stages >= 1
            buffers = tile.stages if chip.capability in (90, 100) else tile.stages - 1
            assert buffers * tile.k * (tile.m * (row_size or size) + tile.n * size) < chip.shared
            assert tile.m * tile.n / (32 * tile.warps) <= 128  # accumulators a thread


@pytest.mark.parametrize(("run", "k"), [(96, 32), (64, 64), (16, 16)])
def test_steps_do_not_cross_runs(run, k):
    assert for_matmul(3136, run, 9 * run, CHIPS[90], element_size=2, run=run, computed=False)[0].k == k


def test_wide_blocks_are_of_operands_in_shared_memory_and_waste_no_columns():
    wide = ((128, 192, 8), (128, 256, 8), (256, 192, 16))

    def found(capability, N, **rest):
        tiles = for_matmul(25216, N, 384, CHIPS[capability], wide=wide, **rest)
        return {(tile.m, tile.n, tile.warps) for tile in tiles} & set(wide)

    assert found(90, 1152, element_size=2, computed=False) == set(wide)
    assert found(100, 1152, element_size=2, computed=False) == set(wide[:2])
    assert found(90, 1024, element_size=2, computed=False) == {(128, 256, 8)}
    assert not found(90, 1152, element_size=2, computed=True)
    assert found(90, 1152, element_size=1, computed=False) == {(128, 192, 8)}
    assert not found(90, 1152, element_size=1, computed=True)
    assert not found(100, 1152, element_size=1, computed=False)
    assert not found(80, 1152, element_size=2, computed=False)
    assert not found(90, 1152, element_size=2, computed=False, run=24)  # what is left of a step would spill


def test_a_second_block_is_worth_more_than_a_fourth_stage():
    def stages(M, K):
        tiles = for_matmul(M, 1024, K, CHIPS[90], element_size=2, computed=False)
        return next(tile.stages for tile in tiles if (tile.m, tile.n) == (128, 128))

    assert stages(25088, 384) == 3
    assert stages(196, 384) == 4  # there are too few blocks for two on a multiprocessor
    assert stages(25088, 64) == 2  # of one step


@EACH_CHIP
def test_blocks_that_are_alone_on_a_multiprocessor_have_more_warps_and_longer_steps(chip):
    """A block of 4 warps would issue in every second cycle at most."""

    def tiles(M, **rest):
        found = for_matmul(M, 384, 1536, chip, computed=False, **rest)
        return {(tile.m, tile.n): (tile.k, tile.warps) for tile in found}

    one, many = tiles(197, element_size=2), tiles(32 * 197, element_size=2)
    assert (one[64, 32], many[64, 32]) == ((128, 8), (64, 4))
    assert one[128, 128] == many[128, 128] == (64, 8)
    assert tiles(197, element_size=2, most=64)[64, 32] == (64, 8)
    assert tiles(197, element_size=1)[64, 32] == (128, 8 if chip.reads_shared else 4)
    assert tiles(197, element_size=4) == tiles(32 * 197, element_size=4)
    narrow = for_matmul(3136, 16, 9 * 16, chip, element_size=2, run=16, computed=False)
    assert all(tile.n * tile.k * 2 >= 32 * tile.warps * 4 for tile in narrow)


def test_plans_without_a_gpu_are_made_for_the_assumed_chip():
    assert chip_of(torch.device("cpu")) is CHIPS[90]
    with assuming(CHIPS[80]):
        assert chip_of(torch.device("meta")) is CHIPS[80]
    assert chip_of(torch.device("cpu")) is CHIPS[90]
