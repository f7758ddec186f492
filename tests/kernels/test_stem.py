"""The stem's two kernels, and the tiles they choose."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DTYPES, check, layouts, make
from kernel_samples import STEM, STEM_SMALL, stem_sample

from benchmarks.judge import outputs, poisoned_memory
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.model import functional as CF

EACH = pytest.mark.parametrize("sample", STEM, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype, monkeypatch):
    """The oracle without oneDNN: on CPUs with AMX its bfloat16 convolution of images one pixel wide is 100 % off."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    check(sample.operation, make(sample, dtype))


@EACH
def test_small_tiles(sample):
    check(sample.operation, make(sample, torch.float16), STEM_SMALL)


@pytest.mark.parametrize("B", [1, 3])
def test_every_tile(B):
    arguments = make(stem_sample("", B, 13, 18, 3), torch.float16)
    for tile in dispatch.PLANS["stem"](*arguments).tiles:
        check("stem", arguments, tile)


def test_any_strides():
    for arguments in layouts(make(stem_sample("", 3, 13, 18, 1), torch.float16)):
        check("stem", arguments, STEM_SMALL)


@pytest.mark.parametrize("images_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@DTYPES
def test_images_of_any_precision(images_dtype, dtype):
    arguments = make(stem_sample("", 1, 9, 11, 1), dtype)
    arguments[0] = arguments[0].to(images_dtype)
    check("stem", arguments)


def test_channels_last_and_repeated_images():
    arguments = make(stem_sample("", 3, 9, 11, 1), torch.float16)
    images = arguments[0]
    for same in (
        images.to(memory_format=torch.channels_last),
        images[:1].expand(3, -1, -1, -1),
        images[:, :1].expand(-1, 3, -1, -1),
    ):
        check("stem", [same, *arguments[1:]])


def test_maps_below_zero_are_zero():
    """The pool's border does not count, neither as zeros before the bias nor as the map's neighbors."""
    images, weight, bias, multiple = make(stem_sample("", 2, 17, 21, 4), torch.float32)
    for offset in (-100, 100):
        arguments = [images, weight, bias + offset, multiple]
        with poisoned_memory():
            (ours,) = outputs(dispatch.PLANS["stem"](*arguments).launch(STEM_SMALL))
        torch.testing.assert_close(ours, CF.stem(*arguments))
        assert bool((ours[:, :5, :6] > 0).all()) == (offset > 0)
        assert not F.pad(ours, (0, 0, -6, 0)).any()
        assert not ours[:, 5:].any()


def plan(chip: int, B: int, size: int, channels: int = 3, K: int = 64, dtype: torch.dtype = torch.float16):
    around = torch.float16 if dtype.itemsize == 1 else dtype

    def tensor(*sizes: int, dtype: torch.dtype = around) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    weight, scales = tensor(K, channels, 7, 7, dtype=dtype), (tensor(), tensor(K)) if around != dtype else ()
    with assuming(CHIPS[chip]):
        return dispatch.PLANS["stem"](tensor(B, channels, size, size), weight, tensor(K), 4, *scales)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("B", [1, 32, 128])
def test_every_multiprocessor_has_work(chip, B):
    tile = plan(chip, B, 224).tiles[0]
    programs = -(-B * 56 // (tile.n // 2 - 1)) * -(-56 // tile.m)
    assert programs >= 0.75 * CHIPS[chip].sms


def test_a_batch_uses_hopper():
    assert plan(90, 128, 224).tiles[0].n == 64


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32], ids=str)
def test_weights_and_a_line_fit_shared_memory(chip, dtype):
    tiles = plan(chip, 8, 224, dtype=dtype).tiles
    assert tiles
    for tile in tiles:
        assert (64 + tile.n) * 256 * dtype.itemsize <= CHIPS[chip].shared


def test_sizes_that_the_kernels_do_not_take():
    assert "at most 4 channels" in plan(90, 1, 32, channels=5).unsupported
    assert "at most 64" in plan(90, 1, 32, K=96).unsupported
    assert plan(90, 1, 8192).unsupported is None
    assert "cannot count" in plan(90, 1, 16384).unsupported
