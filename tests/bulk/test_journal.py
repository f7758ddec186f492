"""The rows of a run that has not ended: what a killed program has written counts, and nothing else."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import closing

import pytest

from conformer_fast.bulk.journal import WHAT, Journal
from conformer_fast.bulk.rows import Row
from conformer_fast.errors import DatasetError

NAMES = [f"{number}.png" for number in range(7)]
ROWS = [Row(name, [3, 1], ["cat", "dog\n"], [0.1, 1 / 3], None) for name in NAMES]
ROWS[2] = Row(NAMES[2], [], [], [], "2.png: damaged")
FIELDS = {"weights": "0" * 64, "topk": 2}
GROUP = 2


def opened(file, fields=FIELDS):
    return closing(Journal(file, fields, NAMES, GROUP))


def lines(file) -> list[bytes]:
    """Of all rows, and before them of the fields."""
    with opened(file) as journal:
        journal.add(ROWS)
    return file.read_bytes().splitlines(keepends=True)


def test_a_new_one(tmp_path):
    with opened(tmp_path / "rows") as journal:
        assert (journal.count, list(journal.rows())) == (0, [])
        journal.add(ROWS[:2])
        journal.add(ROWS[2:])
        assert list(journal.rows()) == ROWS
        journal.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", range(8))
def test_whole_groups_are_kept(tmp_path, there):
    """The last group is whole when all pictures are there."""
    file = tmp_path / "rows"
    file.write_bytes(b"".join(lines(file)[: 1 + there]))
    with opened(file) as journal:
        assert journal.count == (7 if there == 7 else there // GROUP * GROUP)
        assert list(journal.rows()) == ROWS[: journal.count]
        journal.add(ROWS[journal.count :])
        assert list(journal.rows()) == ROWS


def test_a_file_cut_or_changed_at_any_byte(tmp_path):
    """In the first line, a change is refused and a cut begins anew; further on, both write anew what is behind."""
    file = tmp_path / "rows"
    whole = b"".join(lines(file))
    first, refused = whole.index(b"\n") + 1, 0
    for at in range(len(whole)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            file.write_bytes(content)
            if at < first and len(content) > at:
                refused += 1
                with pytest.raises(DatasetError, match="rows holds no rows of a batch; give another output, or delete"):
                    opened(file)
                assert file.read_bytes() == content
                continue
            with opened(file) as journal:
                assert journal.count <= content.count(b"\n")
                journal.add(ROWS[journal.count :])
            assert file.read_bytes() == whole
    assert refused == first


def line(value) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


@pytest.mark.parametrize(
    "value",
    [
        [],
        7,
        ["2.png", [], [], [], 7],
        ["2.png", [1], [], [], None],
        ["2.png", [1.0], ["x"], [0.5], None],
        ["2.png", [True], ["x"], [0.5], None],
        ["2.png", [2**40], ["x"], [0.5], None],
        ["2.png", [1], [2], [0.5], None],
        ["2.png", [1], ["x"], ["0.5"], None],
        ["2.png", [1], ["x"], [0.5]],
        ["3.png", [1], ["x"], [0.5], None],
        {"picture": "2.png"},
    ],
    ids=str,
)
def test_a_line_with_the_right_sum_that_is_no_row(tmp_path, value):
    """Somebody has written it, and it does not count; nor does what is behind."""
    file = tmp_path / "rows"
    right = lines(file)
    file.write_bytes(b"".join([*right[:3], line(value), *right[4:]]))
    with opened(file) as journal:
        assert (journal.count, list(journal.rows())) == (2, ROWS[:2])


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b""], ids=["depth", "no text", "nothing"])
def test_a_line_with_the_right_sum_that_is_no_json(tmp_path, text):
    file = tmp_path / "rows"
    right = lines(file)
    content = b"%08x %s\n" % (zlib.crc32(text), text)
    file.write_bytes(b"".join([*right[:3], content]))
    with opened(file) as journal:
        assert journal.count == 2
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="holds no rows of a batch"), opened(file):
        pass


@pytest.mark.parametrize(
    ("fields", "differences"),
    [
        ({**FIELDS, "topk": 3}, "topk was 3 and is 2;"),
        ({**FIELDS, "weights": "1"}, "of other weights;"),
        ({**FIELDS, "\x1b": 1}, r"'\\x1b' was 1 and is None;"),
        ({}, "of other weights, topk was None and is 2;"),
    ],
    ids=str,
)
def test_another_run_is_refused(tmp_path, fields, differences):
    file = tmp_path / "rows"
    with opened(file, fields):
        content = file.read_bytes()
    with pytest.raises(DatasetError, match=rf"rows is of another run: {differences} give another output, or delete"):
        opened(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("value", [[], 7, None, {WHAT: 3}, {WHAT: [1]}, {"x": {}}], ids=str)
def test_fields_that_are_none(tmp_path, value):
    (tmp_path / "rows").write_bytes(line(value))
    with pytest.raises(DatasetError, match="holds no rows of a batch"):
        opened(tmp_path / "rows")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_file_that_is_none(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    for name, why in {"fifo": "a pipe or a device", "link": "No such file", ".": "Is a directory"}.items():
        with pytest.raises(DatasetError, match=rf"cannot be read \({why}"):
            opened(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system has no such flag")
def test_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.touch()
    (tmp_path / "out.part").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        Journal(tmp_path / "out.part", {}, ["a"], 1)
    assert precious.read_bytes() == b""
