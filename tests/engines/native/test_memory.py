"""Buffers that live at the same time lie apart."""

import random
from itertools import combinations

import pytest

from conformer_fast.engines.native.memory import LINE, Buffer, placed


@pytest.mark.parametrize("seed", range(20))
def test_buffers_of_the_same_time_lie_apart(seed):
    draw = random.Random(seed)
    buffers = []
    for _ in range(draw.randint(1, 40)):
        first = draw.randint(0, 30)
        buffers.append(Buffer(draw.randint(1, 500), first, first + draw.randint(0, 8)))
    size = placed(buffers)
    assert all(buffer.offset % LINE == 0 and buffer.offset + buffer.bytes <= size for buffer in buffers)
    for one, other in combinations(buffers, 2):
        together = one.first <= other.last and other.first <= one.last
        apart = one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset
        assert apart or not together


def test_memory_is_used_again():
    for steps in (range(10), range(10)[::-1]):
        assert placed([Buffer(100, step, step + 1) for step in steps]) == 128 + 100
    assert placed([]) == 0
