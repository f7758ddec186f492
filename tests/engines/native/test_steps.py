"""Each step of csrc/int8.h by itself, for every instruction set that is here, beside float64."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

pytest.importorskip("conformer_fast._C", reason="csrc/ was not built")

import int8_samples as samples
from int8_steps import PORTABLE, SIGNED, UNSIGNED, Step, check, program_of, run

from conformer_fast import _C
from conformer_fast.engines.native.layout import Layout
from conformer_fast.engines.native.program import Numbers

INSTRUCTIONS = _C.int8_instruction_sets()


def tokens(rows: int, channels: int) -> Layout:
    return Layout(1, 1, rows, channels)


def product(maps: Layout, columns: int, **options) -> Callable[[], Step]:
    return partial(samples.product, maps, columns, **options)


ROWS = {f"rows {rows}": product(tokens(rows, 32), 32, numbers=SIGNED) for rows in range(1, 34)}
PRODUCTS = {
    "one value": product(tokens(1, 1), 1),
    "one block of depths": product(tokens(40, 64), 64, numbers=SIGNED),
    "depths 65": product(tokens(17, 65), 48, numbers=SIGNED),
    "depths 130": product(tokens(50, 130), 16, numbers=SIGNED),
    "depths 1000": product(tokens(3, 1000), 80, numbers=SIGNED),
    "sums of several parts": product(tokens(70, 1100), 32, numbers=SIGNED),
    "a few rows of many parts and columns": product(tokens(40, 900), 320, numbers=SIGNED),
    "many rows of many columns": product(tokens(330, 20), 320, numbers=SIGNED),
    "columns 1000": product(tokens(3, 48), 1000),
    "columns 33": product(tokens(70, 48), 33),
    "columns 7": product(tokens(33, 48), 7, zero=0),
    "more columns than rows": product(tokens(70, 48), 160, numbers=SIGNED),
    "unsigned": product(tokens(35, 70), 48, zero=0, numbers=UNSIGNED, relu=True),
    "relu to signed": product(tokens(35, 70), 48, numbers=SIGNED, relu=True),
    "relu to floats": product(tokens(35, 70), 48, relu=True),
    "gelu": product(tokens(35, 70), 48, numbers=SIGNED, gelu=True),
    "gelu to floats": product(tokens(35, 70), 40, gelu=True),
    "signed residual": product(tokens(35, 70), 48, numbers=UNSIGNED, relu=True, residual=SIGNED),
    "unsigned residual": product(tokens(35, 70), 48, numbers=SIGNED, residual=UNSIGNED),
    "residual to floats": product(tokens(35, 70), 40, residual=SIGNED),
    "gelu of a residual": product(tokens(35, 70), 48, numbers=SIGNED, gelu=True, residual=SIGNED),
    "floats added": product(tokens(35, 70), 40, floats=True),
    "floats behind gelu": product(tokens(35, 70), 48, gelu=True, floats=True, numbers=SIGNED),
    "floats behind relu": product(tokens(35, 70), 48, relu=True, floats=True, numbers=SIGNED),
    "map added": product(tokens(35, 70), 40, addend=True),
    "map behind relu": product(Layout(2, 3, 5, 48), 32, addend=True, relu=True, out_halo=1, numbers=UNSIGNED),
    "reads floats": product(tokens(35, 70), 33, zero=None),
    "reads few floats": product(tokens(2, 5), 7, zero=None),
    "floats to numbers": product(tokens(21, 20), 48, zero=None, numbers=SIGNED, relu=True),
    "floats twice": product(tokens(17, 70), 33, zero=None, floats=True),
    "left out": product(tokens(70, 32), 48, leaves_out=3, numbers=SIGNED, residual=SIGNED),
    "left out of floats": product(tokens(35, 32), 33, leaves_out=2),
    "floats at a stride": product(Layout(2, 5, 3, 20), 16, stride=2, zero=None),
    "1x1 at a stride": product(Layout(2, 7, 9, 32), 32, stride=2, numbers=SIGNED),
    "1x1 within a halo": product(Layout(2, 3, 5, 32, halo=1), 32, numbers=SIGNED),
    "1x1 within a halo at a stride": product(Layout(2, 5, 7, 32, halo=1), 32, stride=2, numbers=SIGNED),
    "1x1 to a halo": product(Layout(2, 3, 5, 32), 32, out_halo=1, numbers=SIGNED),
    "3x3 over lines": product(Layout(2, 5, 7, 32, halo=1), 32, window=3, numbers=UNSIGNED, relu=True),
    "3x3 by lines": product(Layout(2, 4, 16, 32, halo=1), 32, window=3, zero=0, numbers=SIGNED),
    "3x3 of wide lines": product(Layout(1, 2, 33, 16, halo=1), 16, window=3, numbers=SIGNED),
    "3x3 of one pixel": product(Layout(3, 1, 1, 48, halo=1), 16, window=3, numbers=SIGNED),
    "3x3 from halo to halo": product(Layout(2, 5, 7, 32, halo=1), 48, window=3, out_halo=1, numbers=SIGNED),
    "3x3 at a stride": product(Layout(2, 7, 9, 32, halo=1), 32, window=3, stride=2, numbers=SIGNED),
    "3x3 of even sides at a stride": product(Layout(2, 6, 34, 16, halo=1), 16, window=3, stride=2, zero=0),
    "patches": product(Layout(2, 8, 12, 16), 33, window=4, patches=True),
    "patches of a rest": product(Layout(2, 5, 7, 20), 48, window=2, patches=True, numbers=SIGNED),
    "stem": product(Layout(2, 15, 37, 4, halo=3), 32, window=7, stride=2, numbers=UNSIGNED, relu=True),
    "stem of few pixels": product(Layout(1, 2, 1, 4, halo=3), 16, window=7, stride=2, numbers=UNSIGNED, relu=True),
}
NORMS = {
    "one row": partial(samples.norm, 1, 16),
    "numbers": partial(samples.norm, 7, 48, numbers=SIGNED, values=False),
    "unsigned": partial(samples.norm, 3, 32, numbers=UNSIGNED, values=False),
    "both": partial(samples.norm, 5, 384, numbers=SIGNED),
    "rows apart": partial(samples.norm, 4, 48, row_step=144),
    "numbers of rows apart": partial(samples.norm, 3, 16, row_step=80, numbers=SIGNED, values=False),
}
COUPLES = {
    "two tokens": partial(samples.couple, 1, 2, 16, numbers=SIGNED, values=False),
    "images": partial(samples.couple, 3, 5, 48, numbers=SIGNED, values=False),
    "values": partial(samples.couple, 2, 10, 384),
    "both": partial(samples.couple, 2, 3, 32, numbers=SIGNED),
}
ATTENTIONS = {
    f"{count} tokens of {size}, scale {scale}": partial(samples.attention, images, count, heads, size, scale, numbers)
    for images, count, heads, size, scale, numbers in [
        (1, 1, 1, 16, 0.01, None),
        (2, 1, 2, 64, 0.03, SIGNED),
        (2, 5, 3, 16, 0.01, None),
        (2, 5, 2, 32, 1e-5, None),  # where keys beyond the last one are hardly below the others
        (2, 197, 1, 64, 1e-5, None),
        (2, 5, 2, 64, 0.04, SIGNED),
        (3, 16, 1, 32, 0.01, SIGNED),
        (2, 33, 2, 48, 0.01, None),
        (2, 64, 1, 16, 0.005, None),
        (1, 197, 2, 64, 0.01, Numbers(0.01, 128)),
        (2, 197, 1, 32, 0.03, None),
        (1, 257, 2, 48, 0.01, None),
        (1, 257, 1, 64, 0.003, Numbers(0.001, 128)),
    ]
}
PICTURES = {
    "one pixel": partial(samples.picture, 1, 1, 1, 1, 7),
    "whole vectors": partial(samples.picture, 2, 3, 5, 16, 22),
    "a rest": partial(samples.picture, 4, 3, 3, 37, 43),
    "wider": partial(samples.picture, 2, 4, 2, 20, 40),
    "unsigned": partial(samples.picture, 2, 2, 7, 15, 21, zero=0),
}
MAX_POOLS = {
    f"{height}x{width}": partial(samples.max_pool, images, height, width, channels, out_height, out_width)
    for images, height, width, channels, out_height, out_width in [
        (1, 1, 1, 16, 1, 1),
        (2, 2, 3, 32, 1, 2),
        (2, 5, 4, 16, 3, 2),
        (3, 7, 7, 48, 4, 4),
        (2, 9, 6, 16, 8, 4),
        (2, 3, 11, 16, 2, 9),
        (1, 1, 8, 16, 5, 6),
    ]
}
AVERAGES = {
    f"stride {stride}, {read.zero} to {written.zero}": partial(samples.average, *shape, stride, read, written)
    for shape, stride, read, written in [
        ((2, 3, 5, 16), 1, UNSIGNED, SIGNED),
        ((3, 4, 6, 32), 2, UNSIGNED, UNSIGNED),
        ((2, 6, 3, 16), 3, SIGNED, SIGNED),
        ((1, 8, 8, 48), 4, SIGNED, UNSIGNED),
    ]
}
MEANS = {f"{shape[1]} pixels": partial(samples.mean, *shape) for shape in [(1, 1, 16), (3, 49, 48), (2, 196, 32)]}
NORMAL = np.random.default_rng(0).standard_normal(496, np.float32) * 1.5
QUANTIZED = {
    f"{count} values, zero {numbers.zero}": partial(samples.quantize, NORMAL[:count], numbers)
    for count in (16, 496)
    for numbers in (SIGNED, UNSIGNED)
}
COPIES = {
    "once": partial(samples.copy, 1, 1, 1, 1, 40, 0),
    "one byte": partial(samples.copy, 1, 1, 1, 1, 1, 3),
    "a halo": partial(samples.copy, 3, 1000, 4, 100, 33, 17),
    "class tokens": partial(samples.copy, 4, 320, 1, 1, 64, 0),
}
STEPS = {
    "rows": ROWS,
    "product": PRODUCTS,
    "norm": NORMS,
    "couple": COUPLES,
    "attention": ATTENTIONS,
    "picture": PICTURES,
    "max_pool": MAX_POOLS,
    "average": AVERAGES,
    "mean": MEANS,
    "quantize": QUANTIZED,
    "copy": COPIES,
}
ALL = {f"{step}, {case}": make for step, cases in STEPS.items() for case, make in cases.items()}


def each(cases: dict[str, Callable[[], Step]]):
    by_case = pytest.mark.parametrize("make", cases.values(), ids=cases)
    return lambda test: pytest.mark.parametrize("instructions", INSTRUCTIONS)(by_case(test))


@each(ROWS)
def test_rows_of_a_product(instructions, make):
    check(make(), instructions)


@each(PRODUCTS)
def test_product(instructions, make):
    check(make(), instructions)


@each(NORMS)
def test_norm(instructions, make):
    check(make(), instructions)


@each(COUPLES)
def test_couple(instructions, make):
    check(make(), instructions)


@each(ATTENTIONS)
def test_attention(instructions, make):
    check(make(), instructions)


@each(PICTURES)
def test_picture(instructions, make):
    check(make(), instructions)


@each(MAX_POOLS)
def test_max_pool(instructions, make):
    check(make(), instructions)


@each(AVERAGES)
def test_average(instructions, make):
    check(make(), instructions)


@each(MEANS)
def test_mean(instructions, make):
    check(make(), instructions)


@each(QUANTIZED)
def test_quantize(instructions, make):
    check(make(), instructions)


@each(COPIES)
def test_copy(instructions, make):
    check(make(), instructions)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_attention_does_not_read_what_another_left(instructions):
    step = samples.attention(1, 5, 4, 16, numbers=SIGNED)
    program = program_of(step, instructions, with_step=False)
    program.attention(**{**step.fields, "heads": 1, "size": 64, "tokens": 40})
    program.attention(**step.fields)
    out = slice(step.fields["out"], step.fields["out"] + step.places["out"])
    np.testing.assert_array_equal(run(program, step)[out], run(program_of(step, instructions), step)[out])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_numbers_by_hand(instructions):
    """Half to even, held within 0 and 255, and 0 for a NaN."""
    values = [0.5, 1.5, 2.5, 254.5, 255.5, 1e30, np.inf, -0.5, -0.75, -1.5, -1e30, -np.inf, np.nan, 0.0, -0.0, 99.75]
    right = [0, 2, 2, 254, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 100]
    for scale in (0.25, 1.0):
        step = samples.quantize(np.array(values, np.float32) * np.float32(scale), Numbers(scale, 0))
        assert run(program_of(step, instructions), step)[step.fields["out"] :][:16].tolist() == right
    signed = [128, 130, 130, 255, 255, 255, 255, 128, 127, 126, 0, 0, 0, 128, 128, 228]
    step = samples.quantize(np.array(values, np.float32) * np.float32(4), Numbers(4.0, 128))
    assert run(program_of(step, instructions), step)[step.fields["out"] :][:16].tolist() == signed


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_neither_instructions_nor_threads_change_a_bit(make):
    step = make()
    right = run(program_of(step, PORTABLE), step)
    for instructions in INSTRUCTIONS:
        program = program_of(step, instructions)
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(run(program, step, threads), right, f"{instructions}, {threads} threads")
