"""Products in 8 bits: every kernel that multiplies, on the sizes of its own tests, against functional.py."""

import inspect

import pytest
import torch
from eight_bits import RANGES, TIES, in_8_bits, passed_on
from kernel_checks import DEVICE, Sample, check, launches, layouts, make, shape
from kernel_samples import CONV3X3, LINEAR, PYRAMID, STEM, STEM_SMALL, WHOLE_ROWS

from benchmarks.judge import outputs, poisoned_memory
from conformer_fast.inference import ops
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import dispatch
from conformer_fast.kernels import launch as launch_module
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF
from conformer_fast.model.precision import FORMATS

SAMPLES = [*LINEAR, *CONV3X3, *WHOLE_ROWS, *PYRAMID, *STEM]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)
SOME = [SAMPLES[index] for index in (5, 13, 17, 19, 23, 27, 30, 36, 41)]  # small ones, of each operation
SOME += [PYRAMID[1], SAMPLES[-6]]
SOME_OF_THEM = pytest.mark.parametrize("sample", SOME, ids=str)
PRECISION = pytest.mark.parametrize("precision", FORMATS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


NORMED = ("linear_norm", "fcu_down", "patch_embed")  # operations whose second result is a norm


def stored(sample, precision, dtype=torch.float16):
    return in_8_bits(sample.operation, make(sample, dtype), Quantization(precision, RANGES))


def between(sample, precision, dtype=torch.float16):
    """In the midst of a network in 8 bits: numbers come in and go out."""
    return passed_on(sample.operation, make(sample, dtype), Quantization(precision, RANGES))


def small(sample, arguments):
    """Several steps and blocks in each direction, and ragged ends."""
    if sample.operation == "stem":
        return STEM_SMALL
    tile = dispatch.PLANS[sample.operation](*arguments).tiles[0]
    pooled = sample.arguments[-1] ** 2 if sample.operation == "conv3x3_pool" else 1
    return tile._replace(m=max(16, pooled), n=min(tile.n, 16), k=32)


def test_every_operation_that_multiplies_weights_is_here():
    taking = {name for name in ops.OPS if "weight_scale" in inspect.signature(getattr(CF, name)).parameters}
    assert taking == {sample.operation for sample in SOME} == {sample.operation for sample in SAMPLES}
    assert set(ops.OPS) - taking == {"attention", "conv1x1_pair", "pool", "heads", *ops.MOVES}


@EACH
def test_error_in_int8(sample):
    check(sample.operation, stored(sample, "int8"), floor=TIES)


@pytest.mark.parametrize("sample", [*SOME[:-1], *STEM], ids=str)
def test_error_in_fp8(sample):
    check(sample.operation, stored(sample, "fp8"), floor=TIES)


@pytest.mark.parametrize("sample", [SAMPLES[4], SAMPLES[7]], ids=str)
def test_error_of_rows_in_fp32_in_fp8(sample):
    check(sample.operation, stored(sample, "fp8"), floor=TIES)


@EACH
def test_error_between_others_in_int8(sample):
    check(sample.operation, between(sample, "int8"), floor=TIES)


@pytest.mark.parametrize("sample", [*SOME[:-1], *STEM], ids=str)
def test_error_between_others_in_fp8(sample):
    check(sample.operation, between(sample, "fp8"), floor=TIES)


@SOME_OF_THEM
@PRECISION
def test_small_tiles_and_any_strides_between_others(sample, precision):
    for arguments in layouts(between(sample, precision)):
        check(sample.operation, arguments, small(sample, arguments), floor=TIES)


@SOME_OF_THEM
@PRECISION
def test_numbers_are_what_their_reader_would_have_made(sample, precision):
    """In PyTorch: the same numbers, bit by bit, whether a product makes them on its way in or who makes its input."""
    arguments = stored(sample, precision)
    call = inspect.signature(getattr(CF, sample.operation)).bind(*between(sample, precision))
    made = outputs(getattr(CF, sample.operation)(*call.arguments.values()))
    plain = {
        name: value for name, value in call.arguments.items() if not name.startswith(("out_", "normed_", "pooled"))
    }
    first = next(iter(plain))
    plain[first] = arguments[0]
    if plain.get("residual") is not None:
        plain["residual"] = dict(zip(call.arguments, arguments, strict=False))["residual"]
    values = outputs(getattr(CF, sample.operation)(**plain))
    for value, number in zip(values, made, strict=True):
        if number.dtype == FORMATS[precision]:
            scale = Quantization(precision, RANGES).scale("input", torch.float16).float().to(value.device)
            value = CF.stored(value.float() / scale, number.dtype)
        assert torch.equal(value.float(), number.float())


@SOME_OF_THEM
@DTYPES
@PRECISION
def test_error_beside_other_types(sample, precision, dtype):
    check(sample.operation, stored(sample, precision, dtype), floor=TIES)


@SOME_OF_THEM
@PRECISION
def test_small_tiles(sample, precision):
    arguments = stored(sample, precision)
    check(sample.operation, arguments, small(sample, arguments), floor=TIES)


@SOME_OF_THEM
@PRECISION
def test_any_strides(sample, precision):
    for arguments in layouts(stored(sample, precision)):
        check(sample.operation, arguments, floor=TIES)


def halves(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """Each tie between two numbers of the format and some beyond its range, in place of the tensor's values."""
    if precision == "int8":
        values = torch.arange(-300, 301) / 2
    else:
        values = torch.cat([torch.arange(-1000, 1001) / 2, torch.arange(-200, 201) * 2.0**-11])
    drawn = values[torch.randint(len(values), tensor.shape)]
    return (drawn / 4).to(tensor)


@pytest.mark.parametrize("sample", [sample for sample in SOME if sample.operation != "fcu_down"], ids=str)
@PRECISION
def test_ties_and_what_is_out_of_range(sample, precision):
    """In fp32 and at a scale that is a power of two, where nothing but the order of sums may differ."""
    arguments = make(sample, torch.float32)
    largest = 127 if precision == "int8" else 448
    quantization = Quantization(precision, {"input": largest / 4, "addend": largest / 4})
    arguments = [
        halves(a, precision) if isinstance(a, torch.Tensor) and a.shape == arguments[0].shape else a for a in arguments
    ]
    arguments = in_8_bits(sample.operation, arguments, quantization)
    with poisoned_memory():
        ours = dispatch.PLANS[sample.operation](*arguments)
        ours = outputs(ours.launch(ours.tiles[0]))
    for value, same in zip(ours, outputs(getattr(CF, sample.operation)(*arguments)), strict=True):
        torch.testing.assert_close(value, same, rtol=1e-6, atol=1e-6 * same.abs().max().item())


def test_integers_are_summed_as_integers():
    """On the way to this 1 the sum exceeds 2^24, where float32 has even numbers only."""
    numbers = torch.tensor([126] * 1501 + [1] + [-126] * 1501, dtype=torch.int8, device=DEVICE)[None]
    ones = torch.where(numbers == 1, 1.0, 127.0)
    zero, one = torch.zeros(1, device=DEVICE), torch.ones((), device=DEVICE)
    plan = dispatch.PLANS["linear"](ones, numbers, zero, input_scale=one, weight_scale=one[None])
    for tile in (plan.tiles[0], plan.tiles[0]._replace(k=32)):
        assert plan.launch(tile).item() == 1


@PRECISION
@pytest.mark.parametrize("tile", [Tile(16, 256, 1, 4, 1), Tile(32, 32, 1, 4, 2)], ids=["one-pass", "streaming"])
def test_attention_leaves_what_its_projection_reads(precision, tile):
    qkv = make(Sample("", "attention", (shape(2, 50, 3 * 2 * 24),)), torch.float16)[0]
    scale = torch.tensor(2.0**-6, dtype=torch.float16, device=DEVICE)
    check("attention", [qkv, 2, 0.2, scale, FORMATS[precision]], tile, floor=TIES)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
@PRECISION
def test_products_of_numbers_wait_for_no_rounding(precision, chip):
    for sample in SAMPLES:
        arguments = between(sample, precision)
        numbers = arguments[0].dtype == FORMATS[precision]
        with assuming(chip):
            found = launches(sample.operation, arguments)[0]
        assert found.arguments.get("WAIT", False) == (
            chip.capability == 90 and sample.operation == "fcu_up" and not numbers
        )
        words = dispatch.PLANS[sample.operation](*arguments).problem.split()
        assert ("reads8" in words) == numbers
        kept = [word for word in words if word in ("out8", "normed8", "pooled8")]
        if sample.operation in NORMED:
            assert kept == ["normed8"]
        else:
            assert (
                kept == ["out8", "pooled8"][: {"fcu_up": 0, "lateral": 0, "conv3x3_pool": 2}.get(sample.operation, 1)]
            )


def test_a_mean_of_numbers_is_refused():
    arguments = between(next(sample for sample in SAMPLES if str(sample) == "fcu_down-S2"), "int8")
    arguments[0] = arguments[0].to(torch.int8)
    assert "8 bits" in dispatch.PLANS["fcu_down"](*arguments).unsupported


@pytest.mark.parametrize("sample", [SAMPLES[8], STEM[3]], ids=str)
@PRECISION
def test_nan_reaches_the_result_in_fp8_alone(precision, sample):
    """INT8 has no number for it."""
    arguments = stored(sample, precision)
    arguments[0].view(-1)[0] = torch.nan
    plan = dispatch.PLANS[sample.operation](*arguments)
    assert plan.launch(plan.tiles[0]).isnan().any() == (precision == "fp8")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
@PRECISION
def test_chips_and_what_they_multiply(precision, chip, monkeypatch):
    for sample in SAMPLES:
        arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in stored(sample, precision)]
        with assuming(chip):
            plan = dispatch.PLANS[sample.operation](*arguments)
            waits = [launch.arguments.get("WAIT", False) for launch in launches(sample.operation, arguments)]
        if precision == "fp8" and chip.capability < 89:
            assert chip.name in plan.unsupported
        else:
            assert plan.unsupported is None
        if sample.operation != "stem":  # which sums 64
            assert min(tile.k for tile in plan.tiles) >= 32  # the least that a matrix instruction sums in 8 bits
        assert plan.problem.split()[1] == f"{precision}-fp16"
        rounded = sample.operation not in ("fcu_down", "stem")  # on the way into the product, and so computed
        assert any(waits) == (chip.capability == 90 and rounded)


def test_the_plain_interpreter_runs_no_fp8(monkeypatch):
    monkeypatch.setattr(launch_module, "interpreted", lambda: True)
    assert "interpreter" in dispatch.PLANS["linear"](*stored(SAMPLES[0], "fp8")).unsupported
    assert dispatch.PLANS["linear"](*stored(SAMPLES[0], "int8")).unsupported is None


def test_numbers_without_scales_are_refused():
    arguments = stored(SAMPLES[0], "int8")
    assert "int8" in dispatch.PLANS["linear"](*arguments[:3]).unsupported


def test_a_weight_in_16_bits_with_scales_is_refused():
    arguments = stored(SAMPLES[0], "int8")
    arguments[1] = arguments[1].half()
    assert "float16" in dispatch.PLANS["linear"](*arguments).unsupported
