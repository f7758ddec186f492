"""The attention kernels, of one pass and streaming, and the choice between them."""

import pytest
import torch
from kernel_checks import DTYPES, Sample, check, layouts, make, shape

from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.tiles import Tile

ONE_PASS = Tile(16, 256, 1, 4, 1)
SEVERAL = Tile(16, 256, 3, 4, 1)  # blocks of queries to a program
STREAMING = Tile(32, 32, 1, 4, 2)  # several steps along the keys, and ragged ends


def sample(B: int, T: int, heads: int, D: int, scale: float | None = None) -> Sample:
    scale = D**-0.5 if scale is None else scale
    return Sample(f"B{B}-T{T}-H{heads}-D{D}", "attention", (shape(B, T, 3 * heads * D), heads, scale))


SAMPLES = [
    sample(1, 1, 1, 64),
    sample(3, 2, 3, 24),
    sample(1, 16, 2, 16),
    sample(2, 17, 1, 100),
    sample(3, 50, 2, 64),
    sample(1, 65, 2, 1),
    sample(1, 101, 1, 100),
    sample(1, 197, 1, 24),
    sample(1, 256, 1, 16),
    sample(1, 257, 1, 64),
    sample(1, 301, 1, 16),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@EACH
@DTYPES
def test_error(sample, dtype):
    check("attention", make(sample, dtype))


@EACH
@DTYPES
def test_streaming(sample, dtype):
    check("attention", make(sample, dtype), STREAMING)


@EACH
def test_every_tile_of_every_chip(sample):
    arguments = make(sample, torch.float16)
    tiles = {ONE_PASS, SEVERAL} if arguments[0].shape[1] <= ONE_PASS.n else set()
    for chip in CHIPS.values():
        with assuming(chip):
            tiles.update(dispatch.PLANS["attention"](*arguments).tiles)
    for tile in sorted(tiles):
        check("attention", arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check("attention", arguments)


@pytest.mark.parametrize("tile", [ONE_PASS, STREAMING], ids=["one-pass", "streaming"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@DTYPES
def test_large_scores(tile, scale, dtype):
    """Scores of 10,000, whose exponentials no float holds, and rows of very different magnitudes."""
    arguments = make(sample(1, 50, 2, 24, scale), dtype, seed=1)  # no two scores so close that rounding decides
    magnitudes = torch.logspace(-3, 1.5, 50, dtype=torch.float64, device=arguments[0].device)
    arguments[0][..., :96] *= magnitudes[:, None].to(dtype)
    check("attention", arguments, tile)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN slice")  # the interpreter's, about the other head
@pytest.mark.parametrize("tile", [ONE_PASS, SEVERAL, STREAMING], ids=["one-pass", "several", "streaming"])
@pytest.mark.parametrize("beyond", [torch.nan, torch.inf, 6e4])
def test_nothing_beyond_a_head_has_influence(tile, beyond):
    """Tiles overrun the tokens into the next image and the channels into the next head."""
    qkv, heads, scale = make(sample(1, 50, 2, 24), torch.float16)
    expected = dispatch.PLANS["attention"](qkv, heads, scale).launch(tile)
    two = torch.cat([qkv, torch.full_like(qkv, beyond)])
    two[0].view(50, 3, 2, 24)[:, :, 1] = beyond
    ours = dispatch.PLANS["attention"](two, heads, scale).launch(tile)
    torch.testing.assert_close(ours[0, :, :24], expected[0, :, :24], rtol=0, atol=0)


def rule(chip: int, B: int, T: int, heads: int = 6, D: int = 64, dtype: torch.dtype = torch.float16) -> Tile:
    with assuming(CHIPS[chip]):
        qkv = torch.empty(B, T, 3 * heads * D, dtype=dtype, device="meta")
        return dispatch.PLANS["attention"](qkv, heads, 1.0).tiles[0]


def test_one_image_is_spread_over_programs_and_a_batch_reads_its_keys_once():
    assert rule(90, 1, 197) == Tile(16, 256, 1, 8, 1)
    assert rule(90, 128, 197) == Tile(64, 256, 4, 4, 1)
    assert rule(90, 128, 50) == Tile(64, 64, 1, 4, 1)


def test_streaming_is_for_long_sequences_and_for_what_takes_many_registers():
    assert rule(90, 8, 256).n == 256
    assert rule(90, 8, 257).n < 257
    assert rule(90, 8, 197, dtype=torch.float32).n < 197
    assert rule(80, 128, 197).n < 197


def test_unsupported_calls_are_named():
    qkv = torch.zeros(1, 5, 3 * 160)
    assert "160" in dispatch.PLANS["attention"](qkv, 1, 1.0).unsupported
    assert "-0.5" in dispatch.PLANS["attention"](qkv, 10, -0.5).unsupported
    assert "0.0" in dispatch.PLANS["attention"](qkv, 10, 0.0).unsupported
    assert "float64" in dispatch.PLANS["attention"](qkv.double(), 10, 1.0).unsupported
