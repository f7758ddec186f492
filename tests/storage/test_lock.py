"""One at a time: what the lock's file does to others."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from conformer_fast.storage.lock import held


def test_its_file_says_who_holds_it_and_is_gone_afterwards(tmp_path):
    path = tmp_path / ".lock"
    with held(FileLock(path)):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_a_file_that_has_another_name_is_not_written(tmp_path):
    """A folder from elsewhere may call any file of the same disk so."""
    theirs, path = tmp_path / "theirs", tmp_path / ".lock"
    theirs.write_text("content")
    path.hardlink_to(theirs)
    with pytest.raises(OSError, match="another file's name too; remove it"), held(FileLock(path)):
        pass
    assert theirs.read_text() == "content"


def test_ctrl_c_while_its_file_is_removed_releases_it(tmp_path, monkeypatch):
    lock = FileLock(tmp_path / ".lock")

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), held(lock):
        pass
    assert not lock.is_locked
