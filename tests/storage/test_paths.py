"""Where the cache is, also for a user without a home."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from conformer_fast.storage import paths


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """The folder for temporary files of such a user."""

    def unknown(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("CONFORMER_FAST_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths._temporary.cache_clear()
    yield tmp_path
    paths._temporary.cache_clear()


def test_a_user_without_a_home_has_a_private_folder(homeless):
    with pytest.warns(UserWarning, match="this user has no home folder: .* is the cache") as said:
        found = {paths.cache_root(), paths.cache_root()}
    assert (found, len(said)) == ({homeless / f"conformer-fast-{os.getuid()}"}, 1)
    assert stat.S_IMODE(found.pop().stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["open to all", "link", "file"])
def test_a_folder_that_others_made_is_not_taken(homeless, trap):
    folder = homeless / f"conformer-fast-{os.getuid()}"
    if trap == "link":
        folder.symlink_to(homeless)
    elif trap == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.warns(UserWarning, match="no home folder"):
        found = paths.cache_root()
    assert found.parent == homeless
    assert found != folder
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_the_cache_root(monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", "elsewhere")
    assert paths.cache_root() == Path("elsewhere")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", "")
    assert paths.cache_root().is_absolute()
    assert paths.cache_root().name == "conformer-fast"
