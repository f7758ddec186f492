"""Pickles, zip and tar files as no program writes them. For tests/hostile."""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

from damage import NAMES, broken, found, numbers
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


def canary(path: str) -> list[bytes]:
    """Pieces of pickles that would write the file `path`, if anything in them were called."""
    command = f"touch {path}".encode()
    line = b"(S'" + command + b"'\n"
    code = f"open({path!r}, 'w')".encode()
    return [
        b"cposix\nsystem\n" + line + b"tR",
        b"cos\nsystem\n" + line + b"tR",
        b"(cos\nsystem\n" + line[1:] + b"o",
        line + b"ios\nsystem\n",
        b"\x8c\x05posix\x8c\x06system\x93" + line + b"tR",
        b"c__builtin__\neval\n(S" + repr(code.decode()).encode() + b"\ntR",
        b"csubprocess\nPopen\n" + line + b"tR",
        b"cbuiltins\nopen\n(S'" + path.encode() + b"'\nS'w'\ntR",
        b"cpathlib\nPosixPath\n(S'" + path.encode() + b"'\ntR(NS'touch'\nb",
        b"cfunctools\npartial\n(cos\nsystem\ntR" + line + b"tR",
        b"cos\nsystem\n" + line + b"t\x81",
    ]


@st.composite
def broken_pickle(draw: Any, content: bytes, pieces: Sequence[bytes]) -> bytes:
    """A pickle with opcodes taken out, repeated, exchanged or changed, or one of `pieces` put in."""
    parts = _opcodes(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        at = draw(st.integers(0, len(parts) - 1))
        fault = draw(st.sampled_from(("gone", "twice", "exchanged", "byte", "piece", "piece", "opcode")))
        if fault == "gone" and len(parts) > 1:
            del parts[at]
        elif fault == "twice":
            parts.insert(at, parts[at])
        elif fault == "exchanged":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif fault == "byte":
            parts[at] = draw(broken(parts[at]))
        elif fault == "piece":
            parts.insert(at, draw(st.sampled_from([*pieces, *_PIECES])))
        else:
            parts[at] = draw(st.sampled_from(pickletools.opcodes)).code.encode("latin-1") + parts[at][1:]
    return b"".join(parts)


_PIECES = (
    *(pickle.dumps(value, 2)[2:-1] for value in (None, -1, 1 << 70, 1e308, "x", b"x", [], {}, (), [[]], ("a", 1))),
    b"]" * 100_000 + b"a" * 99_999,  # deep
    b"(" + b"N" * 1000 + b"t",
    b"\x8a\xff" + b"\x7f" * 255,  # a number of 255 bytes
    b"B\xff\xff\xff\x7f",  # bytes that are not there
    b"X\xff\xff\xff\xff",
    b"0",
    b".",
)


def _opcodes(content: bytes) -> list[bytes]:
    starts = [at for _, _, at in pickletools.genops(content)]
    return [content[at:end] for at, end in zip(starts, [*starts[1:], len(content)], strict=True)]


@st.composite
def broken_zip(draw: Any, content: bytes) -> bytes:
    """A zip file with entries gone, there twice, renamed, exchanged, compressed, longer or shorter, or of other sizes
    in its headers."""
    entries = unzipped(content)
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        at = draw(st.integers(0, len(entries) - 1))
        name, inside = entries[at]
        fault = draw(st.sampled_from(("gone", "twice", "named", "exchanged", "content", "size")))
        if fault == "gone" and len(entries) > 1:
            del entries[at]
        elif fault == "twice":
            entries.append((name, draw(st.sampled_from((inside, b"", inside * 2)))))
        elif fault == "named":
            other = draw(st.sampled_from([*NAMES, *(f"x/{name}" for name in ("data.pkl", "constants.pkl", "data/9"))]))
            entries[at] = other.encode(errors="ignore").decode(), inside
        elif fault == "exchanged":
            other = draw(st.integers(0, len(entries) - 1))
            entries[at], entries[other] = (name, entries[other][1]), (entries[other][0], inside)
        else:
            entries[at] = name, draw(broken(inside)) if fault == "content" else inside[: draw(st.integers(0, 64))]
    result = zipped(entries, draw(st.sampled_from((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))))
    places = [at for mark in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06") for at in found(result, mark)]
    if draw(st.booleans()):
        at = draw(st.sampled_from(places)) + draw(st.integers(4, 46))
        number = draw(numbers((2, 4), "<"))
        result = result[:at] + number + result[at + len(number) :]
    return result


def unzipped(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def zipped(entries: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", compression) as archive:
        for name, inside in entries:  # one name twice is a warning
            archive.writestr(zipfile.ZipInfo(name), inside, compression)
    return file.getvalue()


# Tar files

TAR_FIELDS = {  # of a header: where, and how long
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1),
    "linkname": (157, 100), "magic": (257, 8), "devmajor": (329, 8), "prefix": (345, 155),
}  # fmt: skip
TAR_VALUES = (
    *(b"", b"0", b"7", b"77777777777", b"-1", b"99999999999", b"1 2", b"\x80" + b"\xff" * 11, b"\xff" * 12, b" " * 12),
    *(b"\x80" + bytes(3) + b"\x01" + bytes(7), b"5", b"6", b"2", b"1", b"S", b"x", b"g", b"L", b"K", b"V", b"\0"),
    *(name.encode(errors="surrogatepass")[:100] for name in NAMES),
    *(b"\xff\xfe.png", b"0/" * 49 + b".p", b".png", b"0/.png", b"0//0.png", b"./0/0.png", b"0/0.PNG\xcc"),
)
PAX = (
    *(b"path=../../escaped.png", b"path=/0/0.png", b"path=\xff\xfe", b"path=", b"path=0/a\0b.png", b"path=0/a\nb.png"),
    *(b"size=-1", b"size=99999999999999999999", b"size=1e9", b"size=nan", b"size=", b"linkpath=/dev/zero"),
    *(b"mtime=nan", b"mtime=inf", b"mtime=1e999", b"GNU.sparse.major=1", b"GNU.sparse.size=99999999999999"),
    *(b"GNU.sparse.map=0,99999999999", b"GNU.sparse.map=x", b"GNU.sparse.name=0/x.png", b"hdrcharset=BINARY"),
    *(b"hdrcharset=nothing", b"GNU.sparse.realsize=99999999999999", b"uid=9999999999999999999999"),
)


@st.composite
def broken_tar(draw: Any, content: bytes) -> bytes:
    """A tar file with fields of its headers changed (their checks are right again), members gone, there twice or
    exchanged, or a pax record put in."""
    members = _tar_members(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = draw(st.integers(0, len(members) - 1))
        fault = draw(st.sampled_from(("field", "field", "field", "gone", "twice", "exchanged", "pax", "long", "cut")))
        if fault == "field":
            start, size = TAR_FIELDS[draw(st.sampled_from(sorted(TAR_FIELDS)))]
            value = draw(st.sampled_from(TAR_VALUES))[:size].ljust(size, b"\0")
            members[at] = _checked_header(members[at][:start] + value + members[at][start + size :])
        elif fault == "gone" and len(members) > 1:
            del members[at]
        elif fault == "twice":
            members.insert(at, members[at])
        elif fault == "exchanged":
            other = draw(st.integers(0, len(members) - 1))
            members[at], members[other] = members[other], members[at]
        elif fault == "pax":
            members.insert(at, draw(_pax()))
        elif fault == "long":
            members.insert(at, draw(_long_name()))
        else:
            members[at] = members[at][: draw(st.integers(0, len(members[at])))]
    return b"".join(members) + bytes(draw(st.sampled_from((1024, 1024, 512, 0))))


def _pax() -> SearchStrategy[bytes]:
    def member(records: list[bytes], kind: bytes, off: int, size: int | None) -> bytes:
        body = b"".join(
            b"%d %s\n" % (max(0, len(record) + len(str(len(record) + 4)) + 2 + off), record) for record in records
        )
        return _member("PaxHeader", kind, body, size)

    return st.builds(
        member,
        st.lists(st.sampled_from(PAX), min_size=1, max_size=4),
        st.sampled_from((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)),
        st.sampled_from((0, 0, 0, 0, 1, -1, -99, 10**6)),
        st.sampled_from((None, None, None, 0, 1, 511, 1 << 20, 1 << 32)),
    )


def _long_name() -> SearchStrategy[bytes]:
    return st.builds(
        _member,
        st.just("././@LongLink"),
        st.sampled_from((tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE)),
        st.sampled_from([name.encode(errors="surrogatepass") for name in NAMES]),
        st.sampled_from((None, None, 0, 1 << 20, 1 << 33)),
    )


def _member(name: str, kind: bytes, body: bytes, size: int | None) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(body) if size is None else size
    return member.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)


def _tar_members(content: bytes) -> list[bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        starts = [member.offset for member in archive]
        return [content[at:end] for at, end in zip(starts, [*starts[1:], archive.offset], strict=True)]


def _checked_header(member: bytes) -> bytes:
    blank = member[:148] + b" " * 8 + member[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:] + member[512:]
