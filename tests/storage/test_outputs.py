"""Files that users ask for take the place of nothing but files, and leave those as private as they were."""

import os
import socket
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from conformer_fast.errors import ArgumentError
from conformer_fast.storage.outputs import check_output, write_output


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o777], ids=oct)
def test_a_file_keeps_who_may_read_it(umask, mode, tmp_path):
    file = tmp_path / "out"
    file.write_bytes(b"old")
    file.chmod(mode)
    write_output(file, b"new")
    assert (file.read_bytes(), mode_of(file)) == (b"new", mode)
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_is_as_the_umask_says(umask, tmp_path):
    write_output(tmp_path / "out", b"")
    assert mode_of(tmp_path / "out") == 0o644


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path):
    file = tmp_path / "out"
    file.touch(0o600)
    os.chown(file, 1234, 2345)
    write_output(file, b"new")
    assert (file.stat().st_uid, file.stat().st_gid, mode_of(file)) == (1234, 2345, 0o600)


def test_a_file_keeps_its_mode_where_there_are_no_owners(umask, tmp_path, monkeypatch):
    """As on Windows, which changes modes by paths alone."""
    for missing in ("fchown", "fchmod"):
        monkeypatch.delattr(os, missing)
    chmod, file = os.chmod, tmp_path / "out"
    file.touch(0o640)
    file.chmod(0o640)
    monkeypatch.setattr(os, "chmod", lambda path, mode: chmod(os.fspath(path), mode))
    write_output(file, b"new")
    assert (file.read_bytes(), mode_of(file)) == (b"new", 0o640)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_is_followed(there, tmp_path):
    target, link, beside = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "far" / "link"
    target.parent.mkdir()
    if there:
        target.touch(0o600)
    beside.symlink_to("target")
    link.symlink_to(beside)
    assert check_output(link) == target.resolve()
    write_output(link, b"new")
    assert (link.is_symlink(), beside.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_bytes() == b"new"


def special(kind, folder):
    """A path of that kind, and whether it may be looked at."""
    path = folder / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "link to a fifo":
        os.mkfifo(folder / "fifo")
        path.symlink_to("fifo")
    else:
        return Path(kind)
    return path


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "link to a device", "/dev/null", "/dev/full", "/dev/zero"])
def test_what_is_no_file_is_not_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("it would have been replaced"))
    path = special(kind, tmp_path)
    before = path.lstat()
    for refuse in (check_output, lambda path: write_output(path, b"new")):
        with pytest.raises(ArgumentError, match=f"{path} is a device, pipe or socket, not a plain file"):
            refuse(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_socket_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its name must be short
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("s")
        with pytest.raises(ArgumentError, match="device, pipe or socket"):
            write_output("s", b"new")
        assert stat.S_ISSOCK(os.lstat("s").st_mode)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_programs_own_streams_are_not_replaced(stream, tmp_path):
    """Also where they go to a file: what is printed later would go to one without a name."""
    file, kept = tmp_path / "stream", os.dup(stream)
    file.touch()
    sys.stdout.flush()
    try:
        with file.open("r+b") as opened:
            os.dup2(opened.fileno(), stream)
        for path in (file, f"/dev/fd/{stream}"):
            with pytest.raises(ArgumentError, match="is what this program reads from or prints to"):
                write_output(path, b"new")
    finally:
        os.dup2(kept, stream)
        os.close(kept)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("alias", ["itself", "another spelling", "link", "hard link", "text"])
def test_an_input_is_not_replaced(alias, tmp_path):
    file, other = tmp_path / "in", tmp_path / "alias"
    file.write_bytes(b"precious")
    if alias == "link":
        other.symlink_to(file)
    elif alias == "hard link":
        other.hardlink_to(file)
    else:
        other = {"itself": file, "another spelling": tmp_path / "x" / ".." / "in", "text": str(file)}[alias]
    (tmp_path / "x").mkdir()
    inputs = ["pretrained", "no\0name", tmp_path, file]
    with pytest.raises(ArgumentError, match=f"{other} is the file {file}, which is read and would be lost"):
        check_output(other, inputs)
    assert check_output(tmp_path / "new", inputs) == (tmp_path / "new").resolve()


WRONG = {
    "a folder": ("folder", IsADirectoryError, "folder is a folder; give the name of a file"),
    "nothing": ("", IsADirectoryError, "is a folder; give the name of a file"),
    "no such folder": ("none/out", FileNotFoundError, "the folder .*none does not exist; create it first"),
    "below a file": ("file/out", NotADirectoryError, "file is a file, not a folder; give another name"),
    "a NUL": ("a\0b", ArgumentError, r"a\\x00b' cannot be a file's name \(.*embedded null .*\); give another"),
    "a loop": ("loop", OSError, "loop"),
    "too long": ("n" * 300, OSError, "File name too long"),
}


@pytest.mark.parametrize(("name", "kind", "message"), WRONG.values(), ids=WRONG)
def test_names_that_cannot_be(name, kind, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for refuse in (check_output, lambda path: write_output(path, b"new")):
        with pytest.raises(kind, match=message):
            refuse(f"{tmp_path}/{name}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kept", ["file", "folder"])
def test_what_may_not_be_changed(kept, tmp_path, monkeypatch):
    """A file that was made read-only too, which renaming would replace."""
    file = tmp_path / "out"
    file.write_bytes(b"old")
    closed = file if kept == "file" else tmp_path
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != closed and access(path, how))  # also for root
    with pytest.raises(PermissionError, match=r"may not be changed|cannot be written"):
        write_output(file, b"new")
    assert file.read_bytes() == b"old"
