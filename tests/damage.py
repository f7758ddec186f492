"""Bytes and JSON values as no program writes them: what hypothesis damages, and how. For tests/hostile."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
NUMBERS = (0, 1, 2, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
NAMES = (
    *("", ".", "..", "/", "../../escaped", "/tmp/escaped", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "\u202ename"),
    *(
        "__proto__",
        "__class__",
        "con",
        "x" * 300,
        "\u00e9",
        "e\u0301",
        "\ud800",
        "~",
        "-rf",
        "%s%n",
        "{0}",
        "a" * 5000,
        "\x1b\n" * 2000,
    ),
)
ODD = (  # numbers, as JSON text
    *("0", "-1", "1.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-320", "9" * 400, "9" * 5000),
    *(str(number) for number in NUMBERS[4:]),
)
VALUES = (  # as JSON text
    *ODD,
    *("null", "true", "false", "[]", "{}", "[[]]", '[{"a": null}]', '{"a": 1, "a": 2}', '""', '"x"', '"nan"', '"1"'),
    *(json.dumps(name) for name in NAMES),
    *("[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "[" * 900 + "]" * 900, '"', "[", "nul"),
    json.dumps("y" * 100_000),
)


@st.composite
def broken(draw: Any, content: bytes, other: bytes = b"") -> bytes:
    """`content` with one to three faults. other: what it may be spliced with."""
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        content = _FAULTS[draw(st.sampled_from(sorted(_FAULTS)))](draw, content, draw(_place(content)), other)
    return content


@st.composite
def flipped(draw: Any, content: bytes, places: range) -> bytes:
    """`content` with bits turned at one to three of the places."""
    for _ in range(draw(st.integers(1, 3))):
        content = _flipped(draw, content, places[draw(st.integers(0, len(places) - 1))], b"")
    return content


@st.composite
def poisoned(draw: Any, content: bytes, start: int, form: str = "<f") -> bytes:
    """`content`, which has numbers of this form from `start` on, with one that is none, negative or huge."""
    size = struct.calcsize(form)
    at = start + size * draw(st.integers(0, (len(content) - start) // size - 1))
    value = draw(st.sampled_from((math.nan, math.inf, -math.inf, -1.0, 3e38)))
    return content[:at] + struct.pack(form, value) + content[at + size :]


def _place(content: bytes) -> SearchStrategy[int]:
    """Anywhere, and as often near the beginning or the end."""
    last = max(0, len(content) - 1)
    return st.one_of(st.integers(0, last), st.integers(0, min(last, 64)), st.integers(max(0, last - 64), last))


def _flipped(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    value = (content[at : at + 1] or b"\0")[0] ^ 1 << draw(st.integers(0, 7))
    return content[:at] + bytes([value]) + content[at + 1 :]


def _cut(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[:at]


def _removed(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + content[at + draw(st.integers(1, 64)) :]


def _repeated(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[: at + draw(st.integers(1, 64))] + content[at:]


def _zeroed(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    size = min(draw(st.sampled_from((1, 4, 16, 512))), len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def _numbered(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + (number := draw(numbers())) + content[at + len(number) :]


def _spliced(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + (other or content)[draw(st.integers(0, len(other or content))) :]


def _appended(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content + draw(st.one_of(st.binary(min_size=1, max_size=32), st.just(content), st.just(bytes(1024))))


def _inserted(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + draw(st.binary(min_size=1, max_size=16)) + content[at:]


def _emptied(draw: Any, content: bytes, at: int, other: bytes) -> bytes:
    return draw(st.sampled_from((b"", content[:1], content[:16], bytes(len(content)))))


_FAULTS: dict[str, Callable[[Any, bytes, int, bytes], bytes]] = {
    fault.__name__: fault
    for fault in (_flipped, _cut, _removed, _repeated, _zeroed, _numbered, _spliced, _appended, _inserted, _emptied)
}


def numbers(widths: Sequence[int] = tuple(WIDTHS), orders: str = "<>") -> SearchStrategy[bytes]:
    """A number that few expect, as bytes."""

    def packed(width: int, order: str, number: int) -> bytes:
        return struct.pack(order + WIDTHS[width], number & (1 << 8 * width) - 1)

    return st.builds(packed, st.sampled_from(list(widths)), st.sampled_from(orders), st.sampled_from(NUMBERS))


# JSON


@st.composite
def broken_json(draw: Any, value: Any, values: Sequence[str] = (), indent: int | None = None) -> str:
    """The text of a JSON value in which one to three entries have another value or name, or are gone or there twice.

    values: more that an entry may become, as JSON text
    """
    value, raw = copy.deepcopy(value), {}
    for index in range(draw(st.sampled_from((1, 1, 2, 3)))):
        places = list(_entries(value))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        fault = draw(st.sampled_from(("value", "value", "value", "gone", "named", "twice", "copied")))
        mark = f"@{index}@"
        if fault == "gone":
            del parent[key]
        elif fault == "copied":  # another entry's value
            other, name = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[name])
        elif fault == "value" or isinstance(parent, list):
            old, parent[key] = parent[key], mark
            raw[f'"{mark}"'] = draw(st.sampled_from(draw(st.sampled_from([VALUES, _like(old), values or _like(old)]))))
        else:
            kept = parent.pop(key) if fault == "named" else parent[key]
            parent[mark] = kept
            raw[f'"{mark}"'] = json.dumps(key if fault == "twice" else draw(st.sampled_from(NAMES)))
    text = json.dumps(value, indent=indent)
    for marked, replacement in raw.items():
        text = text.replace(marked, replacement)
    return text


def _like(value: Any) -> Sequence[str]:
    """What may be taken for a value of this type."""
    if isinstance(value, int | float):
        return ODD
    return [json.dumps(name) for name in NAMES] if isinstance(value, str) else VALUES


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _entries(inner)


def found(content: bytes, mark: bytes) -> Iterator[int]:
    """Every place where the mark is."""
    at = content.find(mark)
    while at >= 0:
        yield at
        at = content.find(mark, at + 1)
