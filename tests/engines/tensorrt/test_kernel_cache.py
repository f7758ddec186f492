"""Compiled kernels kept on disk: read only whole and, with a key, only signed; a failure costs only the keeping."""

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from conformer_fast.engines.tensorrt.kernel_cache import RuntimeCacheFile
from conformer_fast.storage import hashed
from conformer_fast.storage.hashed import HashedFile

KEYS = pytest.mark.parametrize("key", [None, b"secret"], ids=["hashed", "signed"])


@KEYS
def test_file_round_trip(key, tmp_path):
    assert RuntimeCacheFile(tmp_path, key).read() is None
    for content in (b"kernels", bytes(100_000)):
        RuntimeCacheFile(tmp_path, key).write(content)
        assert RuntimeCacheFile(tmp_path, key).read() == content
        assert RuntimeCacheFile(tmp_path).read() == content  # a hash is all that is asked for without a key
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"runtime.cache.lock"} == {"runtime.cache", "runtime.cache.hash"}


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:middle],
        "empty": b"",
        "longer": content + b"\0",
        "zeroed": bytes(len(content)),
        "not utf-8": b"\xff" + content,
    }[how]


@KEYS
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "longer", "zeroed", "not utf-8"])
@pytest.mark.parametrize("name", ["runtime.cache", "runtime.cache.hash"])
def test_damaged_file_is_not_read(name, how, key, tmp_path):
    file = RuntimeCacheFile(tmp_path, key)
    file.write(b"kernels" * 20)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.warns(UserWarning, match=r"runtime\.cache is .*; its kernels are compiled again"):
        assert file.read() is None
    file.write(b"new")
    assert file.read() == b"new"


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '[{"sha256": 1, "hmac": 1}]', '[{"sha256": "\\u00e9", "hmac": "\\u00e9"}]', "1" * 9999]
)
@KEYS
def test_strange_hash(text, key, tmp_path):
    file = RuntimeCacheFile(tmp_path, key)
    file.write(b"kernels")
    (tmp_path / "runtime.cache.hash").write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match="is damaged"):
        assert file.read() is None


@pytest.mark.parametrize("key", [None, b"other"], ids=["unsigned", "signed by another"])
def test_file_that_the_key_has_not_signed_is_not_read(key, tmp_path):
    RuntimeCacheFile(tmp_path, key).write(b"kernels")
    with pytest.warns(UserWarning, match="is not signed by the key"):
        assert RuntimeCacheFile(tmp_path, b"secret").read() is None


def test_files_with_one_of_the_two_missing(tmp_path):
    file = RuntimeCacheFile(tmp_path)
    for name, warning in [("runtime.cache", True), ("runtime.cache.hash", False)]:
        file.write(b"kernels")
        (tmp_path / name).unlink()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert file.read() is None
        assert bool(caught) == warning


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write: root too, for whom permissions are none."""
    RuntimeCacheFile(tmp_path).write(b"kernels")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield tmp_path
    tmp_path.chmod(stat.S_IRWXU)


def test_folder_that_cannot_be_written(read_only, monkeypatch):
    if os.access(read_only, os.W_OK):  # as root

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(hashed, "replace_file", refuse)
        monkeypatch.setattr(hashed.FileLock, "acquire", refuse)
    file = RuntimeCacheFile(read_only)
    assert file.read() == b"kernels"
    with pytest.warns(UserWarning, match="compiled kernels are not kept in .*Permission denied"):
        file.write(b"new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.write(b"new")
    assert file.read() == b"kernels"


def test_folder_that_is_gone(tmp_path):
    file = RuntimeCacheFile(tmp_path / "gone")
    assert file.read() is None
    with pytest.warns(UserWarning, match="are not kept"):
        file.write(b"kernels")
    assert not (tmp_path / "gone").exists()


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    file = RuntimeCacheFile(tmp_path)
    file.write(b"kernels")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="No space left"):
            file.write(b"new")
    assert file.read() == b"kernels"
    assert not list(tmp_path.glob("*.part"))


def test_writers_and_readers_at_the_same_time(tmp_path):
    contents = [bytes([index]) * 10_000 for index in range(6)]
    RuntimeCacheFile(tmp_path).write(contents[0])

    def work(content: bytes) -> None:
        file = RuntimeCacheFile(tmp_path)
        for _ in range(10):
            file.write(content)
            assert file.read() in contents

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, contents))


def test_reader_waits_for_a_writer(tmp_path):
    file = RuntimeCacheFile(tmp_path)
    file.write(b"old")
    with ThreadPoolExecutor(1) as pool:
        with HashedFile(tmp_path / "runtime.cache").locked():
            reading = pool.submit(file.read)
            assert not wait([reading], timeout=0.2).done
            (tmp_path / "runtime.cache").write_bytes(b"half of the new one")
            (tmp_path / "runtime.cache").write_bytes(b"old")
        assert reading.result() == b"old"
