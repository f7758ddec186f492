"""Bytes that have a path, in memory and, where that cannot be, on disk."""

import gc
import os
import stat
from pathlib import Path

import pytest

from conformer_fast.storage import memory_file
from conformer_fast.storage.memory_file import MemoryFile

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(params=["memory", "disk"], autouse=True)
def place(request, monkeypatch, tmp_path) -> str:
    monkeypatch.setattr(memory_file.tempfile, "tempdir", str(tmp_path))
    if request.param == "disk":
        monkeypatch.setattr(memory_file, "DESCRIPTORS", tmp_path / "absent")
    return request.param


def test_it_is_there_as_long_as_it_is_needed(place):
    descriptors = os.listdir("/proc/self/fd")
    file = MemoryFile(memoryview(CONTENT))
    path = Path(file.path)
    assert path.read_bytes() == file.read() == CONTENT
    assert place == "memory" or stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as kept:
        del file
        gc.collect()
        assert kept.read() == CONTENT
    assert os.listdir("/proc/self/fd") == descriptors
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_forked_process_leaves_it_to_its_parent():
    file = MemoryFile(CONTENT)
    child = os.fork()
    if not child:
        read = file.read() == CONTENT
        del file
        gc.collect()
        os._exit(0 if read else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert file.read() == CONTENT


def test_a_descriptor_that_was_closed_by_others(place, tmp_path):
    """And is another file's by now: neither is that taken for this one, nor is it closed."""
    file = MemoryFile(CONTENT)
    assert file.intact
    gone = MemoryFile(CONTENT)
    descriptor = next(number for number in range(3, 1024) if _leads_to(number, gone))
    os.close(descriptor)
    strange = os.open(tmp_path / "strange", os.O_CREAT | os.O_RDWR)
    assert strange == descriptor
    assert gone.intact == (place == "disk")
    del gone
    gc.collect()
    os.fstat(strange)
    os.close(strange)
    assert file.intact


def _leads_to(descriptor: int, file: MemoryFile) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file.path))
    except OSError:
        return False
