"""What a step, a program or a run of it cannot be given is refused before anything is written."""

import itertools
from functools import partial

import numpy as np
import pytest

pytest.importorskip("conformer_fast._C", reason="csrc/ was not built")

import int8_samples as samples
from int8_steps import PORTABLE, SIGNED, UNSIGNED, Step, program_of, run

from conformer_fast import _C
from conformer_fast.engines.native.layout import Layout

REFUSED = (TypeError, ValueError)
LARGEST = 2**31  # of counts
OPTIONAL = {
    *("addend", "behind", "gelu", "in_floats", "out_floats", "out_rows", "relu"),
    *("residual", "residual_floats", "row_step", "tiles"),
}
STEPS = {
    "3x3": partial(samples.product, Layout(1, 3, 5, 16, 1), 16, window=3, residual=SIGNED, numbers=UNSIGNED),
    "floats": partial(samples.product, Layout(1, 1, 20, 16), 16, zero=None, floats=True),
    "map": partial(samples.product, Layout(1, 3, 5, 16), 16, addend=True),
    "norm": partial(samples.norm, 5, 16, 32, SIGNED),
    "couple": partial(samples.couple, 2, 3, 16, SIGNED),
    "attention": partial(samples.attention, 2, 5, 2, 16, numbers=SIGNED),
    "attention, values": partial(samples.attention, 2, 5, 2, 16),
    "picture": partial(samples.picture, 2, 3, 5, 6, 12),
    "max_pool": partial(samples.max_pool, 2, 5, 4, 16, 3, 2),
    "average": partial(samples.average, 2, 4, 4, 16, 2, SIGNED, SIGNED),
    "mean": partial(samples.mean, 2, 3, 16),
    "quantize": partial(samples.quantize, np.zeros(128, np.float32), SIGNED),
    "copy": partial(samples.copy, 2, 300, 2, 100, 50, 7),
}
each = pytest.mark.parametrize("step", STEPS, indirect=True)


@pytest.fixture
def step(request) -> Step:
    return STEPS[request.param]()


def fields(step: Step, kind: type) -> list[str]:
    """Those of a step whose value is of that type, but for places."""
    return [name for name, value in step.fields.items() if type(value) is kind and name not in step.places]


def results(step: Step) -> set[str]:
    written = {made.offset for made in step.made}
    return {name for name in step.places if step.fields[name] in written}


def takes(step: Step, size: int, /, **changed) -> bool:
    """Whether a program whose memory has so many bytes takes the step."""
    program = _C.Int8Program(PORTABLE, size, len(step.pictures))
    try:
        getattr(program, step.name)(**{**step.fields, **changed})
    except REFUSED:
        return False
    return True


def refuses(step: Step, /, **changed) -> None:
    """That a program does, and does not run it."""
    program, right = program_of(step, PORTABLE, with_step=False), step.before
    with pytest.raises(REFUSED):
        getattr(program, step.name)(**{**step.fields, **changed})
    if step.name == "picture":  # which every program must read
        program.picture(**step.fields)
        right = run(program_of(step, PORTABLE), step)
    np.testing.assert_array_equal(run(program, step), right)


@each
def test_what_is_not_changed_is_taken(step):
    assert takes(step, step.before.size)


@each
def test_places_outside(step):
    end = step.before.size
    for name in step.places:
        for offset in (-64, -1, 1, 32, 63, end - 64, end, end + 64, 2**62, 2**63 - 64):
            refuses(step, **{name: offset})


@each
def test_results_fit_memory_to_the_byte(step):
    end = step.before.size
    for name in results(step):
        assert takes(step, end + step.places[name], **{name: end})
        assert not takes(step, end + step.places[name] - 1, **{name: end})


@each
def test_what_is_read_must_be_there(step):
    """To the byte; but behind some, what stands beside is read, too."""
    end = step.before.size
    for name in step.places.keys() - results(step):
        reads_more = name in ("qkv", "residual", "residual_floats", "addend") or (step.name, name) == ("product", "in")
        assert takes(step, end + step.places[name], **{name: end}) != reads_more
        assert not takes(step, end + step.places[name] - 1, **{name: end})


@each
def test_arrays_too_short_or_of_another_kind(step):
    for name in fields(step, np.ndarray):
        values = step.fields[name].reshape(-1)
        spread = np.zeros(2 * values.size + 2, values.dtype)[::2]
        for wrong in (
            values[:-1],
            values.astype(np.float64),
            values.astype(np.uint16),
            spread,
            values.tolist(),
            "a",
            0,
        ):
            refuses(step, **{name: wrong})
        if values.itemsize > 1:
            refuses(step, **{name: values.astype(values.dtype.newbyteorder())})


@each
def test_counts_out_of_range(step):
    for name in fields(step, int):
        for wrong in (-1, -LARGEST, LARGEST, LARGEST + 1, 2**63 - 1, -(2**63), 2**64, 2.5, "a"):
            refuses(step, **{name: wrong})
        if name != "behind":
            refuses(step, **{name: 0})


@each
def test_sizes_that_no_word_holds(step):
    names = [name for name in fields(step, int) if name not in ("behind", "size", "tokens", "stride")]
    powers = [16, *range(26, 32)] if len(names) < 4 else [16, 29, 31]
    for sizes in itertools.product(powers, repeat=len(names)):
        assert not takes(step, step.before.size, **{name: 2**power for name, power in zip(names, sizes, strict=True)})


@each
def test_numbers_of_another_kind(step):
    for name in step.fields:
        if name.endswith("numbers") and step.fields[name] is not None:
            for zero in (1, -128, 127, 255, 256):
                refuses(step, **{name: (1.0, zero)})
            for scale in (0.0, -1.0, np.inf, np.nan, 1e-45):
                refuses(step, **{name: (scale, 0)})
            for wrong in ((1.0,), 1.0, "ab", (1.0, 0, 0), (1.0, "a")):
                refuses(step, **{name: wrong})


@each
def test_something_missing(step):
    either = {"out", "out_values"}
    either = either if either <= step.fields.keys() else set()  # one would do
    for name in step.fields.keys() - OPTIONAL - either:
        if not name.endswith("numbers"):
            refuses(step, **{name: None})
            program = program_of(step, PORTABLE, with_step=False)
            with pytest.raises(REFUSED):
                getattr(program, step.name)(**{other: step.fields[other] for other in step.fields if other != name})


@each
def test_an_unknown_field(step):
    refuses(step, wrong=1)


def test_rows_of_a_product():
    step = STEPS["3x3"]()
    for name in ("tiles", "tap"):
        for wrong in (-1, -(2**31), step.before.size, 2**31 - 1):
            values = step.fields[name].copy()
            values[-1] = wrong
            refuses(step, **{name: values})
    for wrong in (step.before.size, 2**31 - 1):
        values = step.fields["out_rows"].copy()
        values[0] = wrong
        refuses(step, out_rows=values)
    step = STEPS["map"]()
    for wrong in (-1, -(2**31), step.before.size, 2**31 - 1):
        values = step.fields["addend_rows"].copy()
        values[-1] = wrong
        refuses(step, addend_rows=values)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("3x3", {"columns": 15}),  # numbers are written in vectors
        ("norm", {"channels": 8}),
        ("norm", {"row_step": 24}),
        ("couple", {"channels": 8}),
        ("couple", {"tokens_per_image": 1}),
        ("attention", {"size": 24}),
        ("attention", {"size": 80}),
        ("attention", {"tokens": 2**15}),  # sums of weights have 32 bits
        ("picture", {"channels": 5}),
        ("picture", {"padded_width": 11}),
        ("max_pool", {"channels": 24}),
        ("max_pool", {"out_height": 2}),
        ("max_pool", {"out_width": 1}),
        ("average", {"stride": 3}),
        ("average", {"channels": 24}),
        ("mean", {"channels": 24}),
        ("quantize", {"count": 24}),
    ],
)
def test_sizes_that_do_not_fit(name, changed):
    refuses(STEPS[name](), **changed)


def test_pictures_are_read_once():
    step = STEPS["picture"]()
    with pytest.raises(ValueError, match="once"):
        program_of(step, PORTABLE).picture(**step.fields)


@pytest.mark.parametrize(
    "arguments", [("none", 64, 1), (PORTABLE, -1, 1), (PORTABLE, -64, 1), (PORTABLE, 64, 0), (PORTABLE, 64, -1)]
)
def test_programs(arguments):
    with pytest.raises(ValueError, match=r"none|-1|-64|0"):
        _C.Int8Program(*arguments)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(-64, 4), (1, 4), (1024, 1), (0, 0), (0, -1), (0, 129), (960, 9), (0, 2**62), (0, 2**63 - 1), (0, 2**61 + 1)],
)
def test_results(offset, count):
    with pytest.raises(ValueError, match=r"must be at least|do not lie"):
        _C.Int8Program(PORTABLE, 1024, 2).result(offset, count)


# --- runs -------------------------------------------------------------------------------------------------------------


def reader(images: int = 2, width: int = 3, results: tuple[int, ...] = (4, 8)) -> _C.Int8Program:
    """A program that reads images of one channel and a line."""
    program = _C.Int8Program(PORTABLE, 2048, images)
    program.picture(out=0, channels=1, height=1, width=width, padded_width=width + 6, numbers=SIGNED)
    for count in results:
        program.result(0, count)
    return program


def arguments(**changed):
    """Of a run of four images, whose results are poisoned."""
    out = [np.full((4, 4), np.pi, np.float32), np.full((4, 8), np.pi, np.float32)]
    return {"programs": [reader()], "images": np.zeros((4, 1, 1, 3), np.float32), "out": out, "threads": 1, **changed}


def test_a_run_fills_all():
    given = arguments()
    _C.int8_run(**given)
    assert not any((out == np.float32(np.pi)).any() for out in given["out"])


@pytest.mark.parametrize(
    "changed",
    [
        {"images": np.zeros((3, 1, 1, 3), np.float32)},  # no multiple of two
        {"images": np.zeros((0, 1, 1, 3), np.float32)},
        {"images": np.zeros((4, 1, 1, 4), np.float32)},
        {"images": np.zeros((4, 1, 1, 2), np.float32)},
        {"images": np.zeros((4, 2, 1, 3), np.float32)},
        {"images": np.zeros((8, 1, 1, 3), np.float32)},  # more than out has
        {"images": np.zeros((), np.float32)},
        {"images": np.zeros((4, 1, 1, 3))},
        {"images": None},
        {"threads": 0},
        {"threads": -1},
        {"threads": 2**31},
    ],
    ids=str,
)
def test_a_run_of_what_does_not_fit(changed):
    refused(arguments(**changed))


def refused(given):
    """And nothing is written."""
    with pytest.raises(REFUSED):
        _C.int8_run(**given)
    assert all((out == np.float32(np.pi)).all() for out in given["out"])


PROGRAMS = {
    "none": list,
    "None": lambda: [None],
    "one, None": lambda: [reader(), None],
    "of other images": lambda: [reader(), reader(images=1)],
    "of other sizes": lambda: [reader(), reader(width=4)],
    "of fewer results": lambda: [reader(), reader(results=(4,))],
    "of other results": lambda: [reader(), reader(results=(4, 4))],
    "one twice": lambda: [reader()] * 2,
    "one twice, another between": lambda: [one := reader(), reader(), one],
    "without images": lambda: [_C.Int8Program(PORTABLE, 2048, 2)],
}


@pytest.mark.parametrize("programs", PROGRAMS.values(), ids=PROGRAMS)
def test_a_run_of_programs_that_do_not_fit(programs):
    refused(arguments(programs=programs()))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 7), np.float32),
        np.zeros((4, 9), np.float32),
        np.zeros((3, 8), np.float32),
        np.zeros((4, 8)),
        np.zeros((4, 8), np.float16),  # a copy of it would be filled
        np.zeros((4, 8), np.dtype("f4").newbyteorder()),
        np.zeros((4, 16), np.float32)[:, ::2],
        np.zeros((8, 4), np.float32).T,
        [[0.0] * 8] * 4,
        None,
    ],
    ids=lambda wrong: f"{getattr(wrong, 'shape', type(wrong))} {getattr(wrong, 'dtype', '')}",
)
def test_a_run_into_what_does_not_fit(wrong):
    given = arguments()
    first = given["out"][0]
    given["out"][1] = wrong
    with pytest.raises(REFUSED):
        _C.int8_run(**given)
    assert (first == np.float32(np.pi)).all()


def test_a_run_into_too_few_too_many_or_what_may_not_be_written():
    out = arguments()["out"]
    for wrong in ([], out[:1], [*out, out[0]]):
        with pytest.raises(ValueError, match="results"):
            _C.int8_run(**arguments(out=wrong))
    out[1].flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _C.int8_run(**arguments(out=out))
    assert all((one == np.float32(np.pi)).all() for one in out)
