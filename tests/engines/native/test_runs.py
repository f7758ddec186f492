"""Batches through programs of csrc/int8.h: images come to their results, whoever runs them."""

import threading

import numpy as np
import pytest

pytest.importorskip("conformer_fast._C", reason="csrc/ was not built")

from int8_samples import weight_of
from int8_steps import PORTABLE, SIGNED

from conformer_fast import _C
from conformer_fast.engines.native.layout import Layout, convolved

INSTRUCTIONS = _C.int8_instruction_sets()
HEIGHT, WIDTH, COLUMNS = 9, 13, 32
PIXELS = 5 * 7  # behind a stride of two
BATCH = 12


def program(instructions: str, images: int) -> _C.Int8Program:
    """A stem whose map is attended to, and the mean of that: two results an image."""
    maps = Layout(images, HEIGHT, WIDTH, 4, halo=3)
    rows = convolved(maps, 7, 2, 5, 7)
    offsets = range(0, 2**20, 2**18)
    made = _C.Int8Program(instructions, 2**20, images)
    made.picture(out=offsets[0], channels=3, height=HEIGHT, width=WIDTH, padded_width=WIDTH + 6, numbers=SIGNED)
    made.product(
        **{"in": offsets[0], "out": offsets[1]},
        **weight_of(np.random.default_rng(0), 3 * COLUMNS, 4, 7, zero=128)[0],
        **{"rows": rows.rows, "tiles": rows.tiles, "out_rows": rows.results, "row_step": 8},
        tap=np.arange(7, dtype=np.int32) * maps.padded_width * 4,
        out_numbers=SIGNED,
    )
    made.attention(
        qkv=offsets[1], out_values=offsets[3], images=images, tokens=PIXELS, heads=2, size=16, scale=SIGNED.scale
    )
    made.mean(**{"in": offsets[3], "out": offsets[2]}, images=images, pixels=PIXELS, channels=COLUMNS)
    made.result(offsets[2], COLUMNS)
    made.result(offsets[3], PIXELS * COLUMNS)
    return made


def pictures() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((BATCH, 3, HEIGHT, WIDTH), np.float32)


def results(programs: list[_C.Int8Program], images: np.ndarray, threads: int = 1) -> list[np.ndarray]:
    sizes = (COLUMNS, PIXELS * COLUMNS)
    out = [np.full((len(images), size), np.nan, np.float32) for size in sizes]
    _C.int8_run(programs, images, out, threads)
    return out


def alone() -> list[np.ndarray]:
    one = program(PORTABLE, 1)
    each = [results([one], image[None]) for image in pictures()]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


def same(found: list[np.ndarray], right: list[np.ndarray]) -> None:
    for left, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(left, other)


def test_images_have_results_of_their_own():
    for result in alone():
        assert np.isfinite(result).all()
        assert len(np.unique(result, axis=0)) == BATCH


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_programs_share_a_batch(instructions, images, count):
    programs = [program(instructions, images) for _ in range(count)]
    for threads in (1, 2, 3):
        same(results(programs, pictures(), threads), alone())


def test_programs_of_several_instruction_sets_share_a_batch():
    same(results([program(instructions, 2) for instructions in INSTRUCTIONS], pictures()), alone())


def test_what_a_program_ran_before_does_not_matter():
    one, images = program("", 2), pictures()
    results([one], -3 * images)
    same(results([one], images), alone())


def test_runs_at_a_time():
    right, found = alone(), {}

    def work(thread: int) -> None:
        found[thread] = results([program("", 2)], pictures(), threads=2)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in range(3):
        same(found[thread], right)


def test_pictures_need_not_be_contiguous():
    one, images = program("", 2), pictures()
    same(results([one], np.asfortranarray(images)), alone())


def test_a_program_keeps_what_it_reads():
    """Arrays that nobody else has stay as long as the program."""
    found = results([program("", 2)], pictures())
    for _ in range(3):
        np.full(2**16, 77, np.int8)
        same(results([program("", 2)], pictures()), found)
