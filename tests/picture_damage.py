"""Pictures as no program writes them. For tests/hostile."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from damage import broken, found, numbers
from hypothesis import strategies as st


@st.composite
def broken_picture(draw: Any, content: bytes) -> bytes:
    """A picture whose parts (chunks, segments, entries) are gone, there twice, exchanged or changed; a PNG's checks
    are right again."""
    parts = picture_parts(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = draw(st.one_of(st.integers(0, len(parts) - 1), st.integers(0, min(len(parts) - 1, 4))))
        fault = draw(st.sampled_from(("number", "number", "number", "gone", "twice", "exchanged", "bytes", "many")))
        if fault == "number" and parts[at]:
            place = draw(st.integers(0, min(len(parts[at]), 40) - 1))
            number = draw(numbers((1, 2, 4)))
            parts[at] = parts[at][:place] + number + parts[at][place + len(number) :]
        elif fault == "gone" and len(parts) > 1:
            del parts[at]
        elif fault == "exchanged":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif fault == "bytes":
            parts[at] = draw(broken(parts[at]))
        else:
            parts[at:at] = [parts[at]] * draw(st.sampled_from((1, 2) if fault == "twice" else (50, 500)))
    if content.startswith(b"\x89PNG"):
        parts = [part if len(part) < 12 or part.startswith(b"\x89PNG") else _png_chunk(part) for part in parts]
    return b"".join(parts)


def _png_chunk(part: bytes) -> bytes:
    return part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4]))


def picture_parts(content: bytes) -> list[bytes]:
    """The bytes of a picture's file, where each part of its format begins."""
    if content.startswith(b"\x89PNG"):
        starts = list(_walk(content, 8, lambda at: 12 + struct.unpack_from(">I", content, at)[0]))
    elif content.startswith(b"\xff\xd8"):
        starts = list(found(content, b"\xff"))
    elif content.startswith(b"RIFF"):
        starts = list(_walk(content, 12, lambda at: 8 + (struct.unpack_from("<I", content, at + 4)[0] + 1 & ~1)))
    elif content.startswith((b"II*\0", b"MM\0*")):
        order = "<" if content.startswith(b"II") else ">"
        directory = struct.unpack_from(f"{order}I", content, 4)[0]
        count = struct.unpack_from(f"{order}H", content, directory)[0]
        starts = [8, directory, *(directory + 2 + 12 * entry for entry in range(count + 1))]
    elif content.startswith(b"GIF"):
        starts = [6, 13, *found(content, b"\x21\xf9"), *found(content, b"\x2c")]
    else:  # BMP and PPM: a header, fields of four bytes or words
        starts = list(range(2, min(54, len(content)), 4))
    starts = sorted({0, *(start for start in starts if start < len(content))})
    return [content[at:end] for at, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def _walk(content: bytes, at: int, length: Callable[[int], int]) -> Iterator[int]:
    while at + 8 <= len(content):
        yield at
        at += length(at)
