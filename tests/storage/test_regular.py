"""What is no regular file is an OSError at once: nothing is waited for, and no device read without an end."""

import os
import stat

import pytest

from conformer_fast.storage.regular import open_regular, read_regular


@pytest.fixture(params=["pipe", "device", "folder", "nothing", "a NUL"])
def no_file(request, tmp_path):
    path = tmp_path / ("a\0b" if request.param == "a NUL" else "name")
    if "pipe" in request.param:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("read", [open_regular, read_regular])
def test_what_is_no_regular_file_is_refused(read, no_file):
    opened = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
    with pytest.raises(OSError, match=r"no regular file|Is a directory|No such file|embedded null") as caught:
        read(no_file)
    assert caught.value.filename == os.fspath(no_file)
    assert not opened or len(os.listdir("/dev/fd")) == opened


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"123\r\n")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path) == read_regular(tmp_path / "link", 5) == b"123\r\n"
    with pytest.raises(OSError, match="has over 4 bytes"):
        read_regular(path, 4)
    with open_regular(path) as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
