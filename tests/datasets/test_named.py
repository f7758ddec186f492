"""What a user names as pictures: files, folders, patterns, the standard input and addresses, in any mixture."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest
from data_samples import picture, shade, write, write_tar
from picture_site import site

from conformer_fast.datasets import named
from conformer_fast.datasets.dataset import PictureSet, open_files, open_named, open_pictures
from conformer_fast.datasets.named import is_on_disk, is_pattern, matching
from conformer_fast.errors import ArgumentError, DatasetError, ImageError


def names(pictures: PictureSet) -> list[str]:
    return [one.name for one in pictures.pictures]


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current one, with a/1.png, a/2.png and a/b/3.png."""
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, {f"a/{name}.png": picture(int(name[-1])) for name in ("1", "2", "b/3")})


def test_all_of_it_at_once(folder, monkeypatch):
    pipe(monkeypatch, picture(8))
    with site() as server:
        server.sends("/9.png", picture(9))
        address = f"{server.url}/9.png"
        pictures = open_pictures(["a/2.png", "-", "a", address, "a/?.png", "absent.png"])
        assert server.asked == []  # until it is asked for
        assert [shade(pictures, index) for index in range(len(pictures) - 1)] == [2, 8, 1, 2, 3, 9, 1, 2]
        assert pictures.load(1).getpixel((3, 3)) == (8, 8, 8)
    below = ["a/1.png", "a/2.png", "a/b/3.png"]
    assert names(pictures) == ["a/2.png", "-", *below, address, "a/1.png", "a/2.png", "absent.png"]
    assert pictures.kind == "named"
    assert pictures.source == f"a/2.png, -, a, {address}, a/?.png and 1 more"
    with pytest.raises(ImageError, match=r"^absent.png: cannot be read \(No such file or directory\); give the path"):
        pictures.load(8)


def test_one_folder_and_archives_are_as_before(folder):
    """Called by their paths from the folder; several archives as if by a pattern."""
    for source in ("a", ["a"]):
        pictures = open_pictures(source)
        assert (names(pictures), pictures.kind, pictures.source) == (["1.png", "2.png", "b/3.png"], "folder", "a")
    for name in "xy":
        write_tar(folder / f"{name}.tar", {f"{name}.png": picture(ord(name))})
    for source in ("?.tar", ["x.tar", "y.tar"], ["?.tar"]):
        pictures = open_pictures(source)
        assert (names(pictures), pictures.kind) == (["x.tar/x.png", "y.tar/y.png"], "tar")
        assert [shade(pictures, index) for index in range(2)] == [ord("x"), ord("y")]
    with pytest.raises(DatasetError, match="give a folder of pictures, tar files or parquet files; name one kind"):
        open_pictures(["x.tar", "a/1.png"])
    with pytest.raises(DatasetError, match="name one kind"):
        open_pictures(["a", "x.tar"])
    with pytest.raises(DatasetError, match=r"there is no file or folder absent\.tar"):
        open_pictures(["absent.tar"])
    assert names(open_pictures("https://a.test/x.tar")) == ["https://a.test/x.tar"]


def test_patterns(folder):
    assert matching("a/*") == ["a/1.png", "a/2.png"]  # no folder
    assert matching("**/*.png") == ["a/1.png", "a/2.png", "a/b/3.png"]
    assert matching("a/{1..2}.png") == ["a/1.png", "a/2.png"]
    assert matching("a/{1..3}.*") == ["a/1.png", "a/2.png"]
    assert matching("a/{2..4}.png") == ["a/2.png", "a/3.png", "a/4.png"]  # named, so that they are missed
    assert [name for name in ("a*", "a?", "a[b]", "{1..2}", "{a}", "http://a/?b", "-") if is_pattern(name)] == [
        *("a*", "a?", "a[b]", "{1..2}")
    ]
    assert matching("{08..10}-{1..2}") == ["08-1", "08-2", "09-1", "09-2", "10-1", "10-2"]
    assert matching("{{1..2}..3}") == ["{1..3}", "{2..3}"]  # as in a shell
    write(folder, {"[1].png": picture(5)})
    assert names(open_named(["[1].png"])) == ["[1].png"]  # a file's own name is no pattern


@pytest.mark.parametrize("end", [".png", ".tar"])
def test_a_pattern_of_too_many_names(folder, end):
    for pattern, count in (
        ("x{1..30000000}", "30,000,000"),
        ("{1..999999999}-{1..999999999}", "999,999,998,000,000,001"),
    ):
        message = f"{pattern}{end} stands for {count} names, 100,000 are allowed; write * for the numbers, or name a f"
        with pytest.raises(ArgumentError, match=re.escape(message)):
            open_pictures([f"{pattern}{end}"])
    with pytest.raises(ArgumentError, match=re.escape(f"a/{{10..1}}{end} counts down; write {{1..10}}")):
        open_pictures([f"a/{{10..1}}{end}"])
    assert len(matching("x{000001..100000}")) == 100_000
    assert not is_pattern(f"x{{1..{'9' * 5000}}}")  # which int() would not read


def test_no_pictures(folder):
    (folder / "empty").mkdir()
    for source, message in (
        (["empty"], "empty has no pictures"),
        (["a", "empty"], "there are no pictures below empty; name where the pictures are"),
        (["no/*.png"], "no file is called like no/.*; name where the pictures are"),
        (["absent.png", "gone.png"], "there is no file or folder absent.png, gone.png"),
    ):
        with pytest.raises(DatasetError, match=message):
            open_pictures(source)
    with pytest.raises(ArgumentError, match="the sources must be at least one, got none"):
        open_pictures([])
    with pytest.raises(ArgumentError, match="the source must be a path, got ''"):
        open_pictures(["a", ""])


def test_a_standard_input_that_has_no_picture(folder, monkeypatch):
    pipe(monkeypatch, picture(1))
    with pytest.raises(ArgumentError, match="- is named twice, and the standard input has one picture"):
        open_named(["-", "-"])
    pipe(monkeypatch, b"")
    with pytest.raises(ArgumentError, match="the standard input, -, is empty; send a picture there, such as: conf"):
        open_named(["-"])
    sys.stdin.close()
    for stream in (sys.stdin, None):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(ArgumentError, match="the standard input, -, is closed; send"):
            open_named(["-"])
    monkeypatch.setattr(named, "MOST_BYTES", 1000)
    pipe(monkeypatch, b"x" * 1001)
    with pytest.raises(ArgumentError, match="has over 1,000 bytes, the most that is allowed; name a file instead"):
        open_named(["-"])
    pipe(monkeypatch, b"x" * 1000)
    with pytest.raises(ImageError, match=r"^-: empty, damaged or not an image"):
        open_named(["-"]).load(0)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals")
def test_a_standard_input_that_is_a_terminal_is_not_waited_for(monkeypatch):
    ours, theirs = os.openpty()
    os.write(ours, b"\x04")  # its end, for whoever would wait
    with os.fdopen(theirs) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(ArgumentError, match="the standard input, -, is a terminal; send a picture"):
            open_named(["-"])
    os.close(ours)


def test_an_endless_standard_input_is_not_read_to_its_end(monkeypatch):
    with open("/dev/zero", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(ArgumentError, match="over 33,554,432 bytes"):
            open_named(["-"])


def test_files_that_look_like_something_else(folder):
    """Where files alone are taken, as in Python, and nothing is read or fetched."""
    write(folder, {"-": picture(4), "http:/a.test/5.png": picture(5)})
    pictures = open_files(["-", "http://a.test/5.png"])
    assert names(pictures) == ["-", "http://a.test/5.png"]
    assert [shade(pictures, index) for index in range(2)] == [4, 5]
    assert not is_on_disk("-")
    assert names(open_named(["./-"])) == ["./-"]
    assert shade(open_named(["./-"]), 0) == 4


def test_what_is_piped_tells_pictures_apart(monkeypatch):
    """Of the same length too: a batch goes on with the same ones alone."""
    digests = []
    for content in (b"a", b"b", b"a"):
        pipe(monkeypatch, content)
        digests.append(open_named(["-"]).sha256())
    assert digests[0] == digests[2] != digests[1]
