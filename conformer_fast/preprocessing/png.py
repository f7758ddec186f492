"""PNG files without what changes no pixel."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_texts(content: bytes) -> bytes:
    """A PNG's bytes without its chunks of text and its color profile; anything else as it is, and what is damaged from
    there on."""
    if not content.startswith(SIGNATURE):
        return content
    parts, place = [SIGNATURE], len(SIGNATURE)
    while len(content) - place >= 12:  # length, kind, that many bytes, and their check
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 12 + length
        if content[place + 4 : place + 8] not in TEXTS:
            parts.append(content[place:end])
        place = end
    return b"".join([*parts, content[place:]])
