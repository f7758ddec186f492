"""The shapes an engine takes: what they may be, what is inside them, how they are stored."""

import dataclasses
import json

import pytest

from conformer_fast.model.shapes import Shapes

SMALL = Shapes((1, 2, 4), (64, 64, 96), (32, 48, 48))


def test_shapes_are_smallest_tuned_largest():
    assert SMALL.with_channels(3) == ((1, 3, 64, 32), (2, 3, 64, 48), (4, 3, 96, 48))
    assert Shapes().with_channels(5) == ((1, 5, 224, 224), (8, 5, 224, 224), (64, 5, 224, 224))


@pytest.mark.parametrize(
    "limits",
    [(0, 1, 2), (-1, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2), (1, 2, 3, 4), (), 8, None, "128", [1, 2, 3], (1, 2.0, 3)],
    ids=str,
)
@pytest.mark.parametrize("name", ["batch", "height", "width"])
def test_impossible_limits_are_refused_with_their_values(name, limits):
    with pytest.raises(ValueError, match=f"^{name} of shapes must be") as caught:
        Shapes(**{name: limits})
    assert str(caught.value).endswith(f"got {limits!r}")


def test_true_is_not_a_size():
    with pytest.raises(ValueError, match="whole numbers"):
        Shapes(batch=(True, 1, 1))


def test_equal_limits_are_a_fixed_size():
    assert Shapes((1, 1, 1)).with_channels(3)[0] == Shapes((1, 1, 1)).with_channels(3)[2]


def test_shapes_are_values():
    assert len({Shapes(), Shapes((1, 8, 64)), SMALL}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.batch = (1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 64, 32), (4, 3, 96, 48), (3, 3, 65, 33), (2, 1, 70, 40)], ids=str)
def test_shapes_inside_pass(shape):
    SMALL.check(shape)


OUTSIDE = {
    (5, 3, 64, 32): "batch=(1, 2, 5), height=(64, 64, 96), width=(32, 48, 48)",
    (1, 3, 97, 32): "batch=(1, 2, 4), height=(64, 64, 97), width=(32, 48, 48)",
    (1, 3, 63, 32): "batch=(1, 2, 4), height=(63, 64, 96), width=(32, 48, 48)",
    (9, 3, 8, 500): "batch=(1, 2, 9), height=(8, 64, 96), width=(32, 48, 500)",
}


@pytest.mark.parametrize(("shape", "needed"), OUTSIDE.items(), ids=map(str, OUTSIDE))
def test_shapes_outside_are_refused_with_those_that_hold_them(shape, needed):
    with pytest.raises(ValueError, match="do not fit the engine") as caught:
        SMALL.check(shape)
    message = str(caught.value)
    assert f"shape {shape}" in message
    assert "takes batch 1 to 4, height 64 to 96, width 32 to 48" in message
    assert message.endswith(f"build it again with Shapes({needed})")
    eval(f"Shapes({needed})", {"Shapes": Shapes}).check(shape)


def test_a_fixed_size_is_told_as_one_number():
    with pytest.raises(ValueError, match="takes batch 1 to 64, height 224, width 224"):
        Shapes().check((1, 3, 224, 225))


@pytest.mark.parametrize("shape", [(3, 64, 32), (1, 1, 3, 64, 32), (0, 3, 64, 32), (1, 3, 64, 0), ()], ids=str)
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must be .* and not empty"):
        SMALL.check(shape)


def test_json_and_back():
    assert Shapes.from_json(json.loads(json.dumps(SMALL.to_json()))) == SMALL
    assert Shapes().to_json() == {"batch": [1, 8, 64], "height": [224, 224, 224], "width": [224, 224, 224]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2, 3],
        {},
        {"batch": [1, 2, 3]},
        {**SMALL.to_json(), "depth": [1, 1, 1]},
        {**SMALL.to_json(), "batch": [3, 2, 1]},
        {**SMALL.to_json(), "batch": "1,2,3"},
        {**SMALL.to_json(), "width": {"min": 1}},
    ],
    ids=str,
)
def test_other_json_is_refused(value):
    with pytest.raises(ValueError, match="shapes"):
        Shapes.from_json(value)
