"""Where the buffers of a program lie in its memory."""

from __future__ import annotations

from dataclasses import dataclass

LINE = 64  # bytes of a line of the cache


@dataclass(eq=False)
class Buffer:
    """Memory that is nobody else's from the first to the last step that uses it."""

    bytes: int
    first: int
    last: int
    offset: int = 0


def placed(buffers: list[Buffer]) -> int:
    """Gives each buffer its offset, the largest first, each at the lowest that is free as long as it is used. Returns
    how many bytes all take."""
    known: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda buffer: -buffer.bytes):
        beside = [other for other in known if other.first <= buffer.last and buffer.first <= other.last]
        for other in sorted(beside, key=lambda other: other.offset):
            if buffer.offset + buffer.bytes <= other.offset:
                break
            buffer.offset = max(buffer.offset, -(-(other.offset + other.bytes) // LINE) * LINE)
        known.append(buffer)
    return max((buffer.offset + buffer.bytes for buffer in buffers), default=0)
