"""Files are replaced whole or not at all."""

import os
import threading
import time

import pytest

from conformer_fast.storage.atomic import replace_file


def test_a_new_file_and_a_replaced_one(tmp_path):
    file = tmp_path / "a.bin"
    for content in (b"one", b"", bytes(range(256)) * 4096):
        replace_file(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("mode", "umask", "expected"),
    [(0o600, 0o022, 0o600), (0o666, 0o022, 0o644), (0o666, 0o077, 0o600), (0o666, 0, 0o666)],
    ids=oct,
)
def test_who_may_read_it(mode, umask, expected, tmp_path):
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "a.bin", b"", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == expected


def test_the_user_alone_by_default(tmp_path):
    replace_file(tmp_path / "a.bin", b"")
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_not_followed(tmp_path):
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"other")
    link.symlink_to(other)
    replace_file(link, b"new")
    assert (other.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"other", b"new", False)


def test_a_write_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")

    def fail(*paths):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["a.bin", "[a]*.bin"])
def test_what_killed_writes_left_is_removed_later(name, tmp_path):
    """Not what may still be written, or is another's."""
    number = "0123456789abcdef" * 2
    left = {f"{name}.{number}.part": 3601, f"{name}.{number[::-1]}.part": 3500, f"{name}.part": 9999}
    left |= {f"another.{number}.part": 9999, f"{name}.mine.part": 9999}
    for path, seconds in left.items():
        (tmp_path / path).write_bytes(b"")
        os.utime(tmp_path / path, (time.time() - seconds,) * 2)
    replace_file(tmp_path / name, b"")
    assert {path.name for path in tmp_path.iterdir()} == {name, *[*left][1:]}


@pytest.mark.parametrize("name", ["absent/a.bin", "folder", "file/a.bin"])
def test_an_error_names_the_file_itself(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"/") as raised:
        replace_file(tmp_path / name, b"new")
    assert raised.value.filename == str(tmp_path / name)
    assert str(raised.value).endswith(f"'{tmp_path / name}'")


def test_content_that_is_not_bytes(tmp_path):
    with pytest.raises(TypeError):
        replace_file(tmp_path / "a.bin", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "absent" / "a.bin", b"")


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        replace_file(tmp_path / "a", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nobody_reads_a_part(tmp_path):
    """Two write in turns while a third reads; each content is one byte repeated."""
    file = tmp_path / "a.bin"
    contents = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    replace_file(file, contents[0])

    def write(content):
        for _ in range(20):
            replace_file(file, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert file.read_bytes() in contents
    for writer in writers:
        writer.join()
    assert list(tmp_path.iterdir()) == [file]
