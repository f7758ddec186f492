"""A reader always gets the old bundle or the new one, whole, whoever writes and whenever he is killed.

tests/hostile/test_kills.py kills at random moments.
"""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from manifest_samples import FILES, KEY, MANIFEST, read

from conformer_fast.bundles import folder as folder_module
from conformer_fast.bundles.folder import check_writable, write_bundle
from conformer_fast.errors import BundleError


class KilledError(BaseException):
    """As if the process ended there."""


OTHER = {"model.plan": b"another" * 99}


@pytest.mark.parametrize("step", range(9))
def test_killed_at_each_step(step, tmp_path, monkeypatch):
    """Of a save that replaces a bundle by one of fewer files: nothing else happens, not even in a `finally`."""
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    (folder / "runtime.cache").write_bytes(b"kernels")
    steps = []

    def killing(original):
        def call(*args, **kwargs):
            steps.append(args)
            if len(steps) > step:
                raise KilledError
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing(os.replace))
        patch.setattr(Path, "unlink", killing(Path.unlink))
        try:
            write_bundle(folder, replace(MANIFEST, labels=None), OTHER, KEY)
        except KilledError:
            assert len(steps) > step
        else:
            assert len(steps) <= step
    there = read(folder)
    assert {name: there.read(name) for name in there.manifest.files} in (FILES, OTHER)
    assert there.signed is ("labels.txt" not in there.manifest.files)
    check_writable(folder)
    write_bundle(folder, replace(MANIFEST, labels=None), OTHER)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "model.plan"}


def test_a_reader_that_meets_a_save_reads_again(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    parsed, reads = folder_module._parsed, []

    def and_then_saved(path, key):
        found = parsed(path, key)
        reads.append(path)
        if len(reads) == 1:
            monkeypatch.setattr(folder_module, "_parsed", parsed)
            write_bundle(folder, replace(MANIFEST, rebuild="again", labels=None), OTHER)
        return found

    monkeypatch.setattr(folder_module, "_parsed", and_then_saved)
    bundle = read(folder)
    assert bundle.manifest.rebuild == "again"
    assert bundle.read("model.plan") == OTHER["model.plan"]


@pytest.mark.parametrize(
    "name",
    [
        *("runtime.cache-notes.txt", "runtime.cache.json", ".model.plan", "x.part", ".lock.txt"),
        *(".lock", ".notes.0123456789abcdef"),
    ],
)
def test_names_like_ours_are_the_users(name, tmp_path):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    (folder / name).write_text("mine")
    with pytest.raises(BundleError, match="holds files that are no bundle's"):
        write_bundle(folder, MANIFEST, FILES)
    assert (folder / name).read_text() == "mine"


def test_a_file_that_comes_during_the_save_stays(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    put = folder_module._put

    def and_a_file(folder, *args):
        (folder / "notes.txt").write_text("mine")
        put(folder, *args)

    monkeypatch.setattr(folder_module, "_put", and_a_file)
    write_bundle(folder, MANIFEST, OTHER | {"labels.txt": b"cat\ndog\n"})
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_folder_keeps_its_mode(tmp_path):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    folder.chmod(0o700)
    write_bundle(folder, MANIFEST, OTHER | {"labels.txt": b"cat\ndog\n"})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
