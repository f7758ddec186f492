"""What is read is what was written or, with a key, signed; damage and folders that cannot be written are told."""

import hashlib
import json
import os
import stat
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import pytest

from conformer_fast.storage import hashed
from conformer_fast.storage.hashed import DamagedError, HashedFile, UnsignedError

KEYS = pytest.mark.parametrize("key", [None, b"secret"], ids=["hashed", "signed"])
FIELDS = {"height": 32, "outputs": ["a", "b"], "name": "é"}


@pytest.fixture
def path(tmp_path):
    """In a folder that is not there yet."""
    return tmp_path / "kept" / "a.bin"


def beside(path):
    return path.with_name(path.name + ".hash")


@KEYS
def test_what_was_written_last_is_read(key, path):
    assert HashedFile(path, key).read() is None
    assert HashedFile(path, key).fields() is None
    assert not path.parent.exists()  # reading makes nothing
    for content in (b"one", b"", bytes(range(256)) * 4096):
        HashedFile(path, key).write(content, FIELDS)
        assert HashedFile(path, key).read() == path.read_bytes() == content
        assert HashedFile(path).read() == content  # a hash is all that is asked for without a key
        assert HashedFile(path).fields() == FIELDS
    HashedFile(path, key).write(b"no fields")
    assert HashedFile(path).fields() == {}
    assert {file.name for file in path.parent.iterdir()} <= {"a.bin", "a.bin.hash", "a.bin.lock"}


def test_the_hash_is_one_that_other_tools_compute(path):
    HashedFile(path).write(b"content", FIELDS)
    assert json.loads(beside(path).read_text()) == [
        {"sha256": hashlib.sha256(b"content").hexdigest(), "fields": FIELDS}
    ]


def test_only_the_user_may_look_inside(path):
    HashedFile(path).write(b"content")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (path, beside(path))} == {0o600}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "flipped": flipped,
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "gone": None,
    "a folder": None,
}


def spoil(file, how):
    if DAMAGE[how] is not None:
        return file.write_bytes(DAMAGE[how](file.read_bytes()))
    file.unlink()
    if how == "a folder":
        file.mkdir()


@KEYS
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_content(how, key, path):
    HashedFile(path, key).write(b"content" * 20)
    spoil(path, how)
    with pytest.raises(DamagedError, match=rf"^{path} is damaged$"):
        HashedFile(path, key).read()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "zeroed", "a folder"])
def test_damaged_hash(how, path):
    HashedFile(path).write(b"content")
    spoil(beside(path), how)
    with pytest.raises(DamagedError, match="is damaged"):
        HashedFile(path).read()


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "{}", "3", '"text"', "[3]", "[[]]", "[{}]", '{"sha256": "0", "fields": {}}'),
        *('[{"sha256": 3, "fields": {}}]', '[{"sha256": "\\u00e9", "fields": {}}]', '[{"sha256": "HASH"}]'),
        *(
            '[{"sha256": "HASH", "fields": 3}]',
            '[{"sha256": "HASH", "fields": {}}, 3]',
            "1" * 9999,
            "[" * 99999,
            "\ufeff",
        ),
    ],
    ids=lambda text: text[:30],
)
def test_strange_hash(text, path):
    HashedFile(path).write(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    beside(path).write_text(text.replace("HASH", digest), encoding="utf-8")
    with pytest.raises(DamagedError, match="is damaged"):
        HashedFile(path).read()
    assert HashedFile(path).fields() in (None, {})
    HashedFile(path).write(b"new")
    assert HashedFile(path).read() == b"new"


def test_content_without_a_hash_is_nothing(path):
    HashedFile(path).write(b"content")
    beside(path).unlink()
    assert HashedFile(path).read() is None


@pytest.mark.parametrize("key", [None, b"other"], ids=["unsigned", "signed by another"])
def test_content_that_the_key_has_not_signed(key, path):
    HashedFile(path, key).write(b"content")
    with pytest.raises(UnsignedError, match=rf"^{path} is not signed by the key$"):
        HashedFile(path, b"secret").read()
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedError):  # whoever signed it
        HashedFile(path, b"secret").read()


@pytest.mark.parametrize("hmac", [None, 3, "", "é", "\ud800", []], ids=ascii)
def test_strange_signature(hmac, path):
    HashedFile(path, b"secret").write(b"content")
    (record,) = json.loads(beside(path).read_text())
    beside(path).write_text(json.dumps([{**record, "hmac": hmac}]))
    with pytest.raises(UnsignedError):
        HashedFile(path, b"secret").read()


def test_a_signature_is_of_the_name_the_fields_and_the_content(path):
    HashedFile(path, b"secret").write(b"content", FIELDS)
    (record,) = json.loads(beside(path).read_text())
    other = path.with_name("b.bin")
    other.write_bytes(b"content")
    beside(other).write_text(json.dumps([record]))
    with pytest.raises(UnsignedError):
        HashedFile(other, b"secret").read()
    beside(path).write_text(json.dumps([{**record, "fields": {**FIELDS, "height": 64}}]))
    with pytest.raises(UnsignedError):
        HashedFile(path, b"secret").read()
    path.write_bytes(b"malice")
    beside(path).write_text(json.dumps([{**record, "sha256": hashlib.sha256(b"malice").hexdigest()}]))
    with pytest.raises(UnsignedError):
        HashedFile(path, b"secret").read()


@pytest.mark.parametrize("first", [True, False], ids=["new", "replaced"])
@pytest.mark.parametrize("broken", range(3))
def test_a_write_that_is_broken_off_leaves_what_was_there(broken, first, path, monkeypatch):
    """At whichever of its steps; a new file has two, one that is replaced three."""
    rename, steps = os.replace, []

    def failing(source, target):
        steps.append(target)
        if len(steps) == broken + 1:
            raise KeyboardInterrupt
        rename(source, target)

    if not first:
        HashedFile(path).write(b"old", {"age": 1})
    monkeypatch.setattr(os, "replace", failing)
    if first and broken == 2:
        HashedFile(path).write(b"new")
        return
    with pytest.raises(KeyboardInterrupt):
        HashedFile(path).write(b"new")
    monkeypatch.setattr(os, "replace", rename)
    expected = None if first else b"new" if broken == 2 else b"old"  # the last step only forgets the old one
    assert HashedFile(path).read() == expected
    assert not list(path.parent.glob("*.part"))
    HashedFile(path).write(b"newer")
    assert HashedFile(path).read() == b"newer"
    assert len(json.loads(beside(path).read_text())) == 1


def test_two_writes_that_are_broken_off_leave_what_was_there(path, monkeypatch):
    HashedFile(path).write(b"old")
    rename = os.replace

    def failing(source, target):
        if target == path:
            raise OSError("the disk is full")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    for content in (b"new", b"newer"):
        with pytest.raises(OSError, match="full"):
            HashedFile(path).write(content)
    assert HashedFile(path).read() == b"old"


@KEYS
def test_old_content_put_back_is_not_read(key, path):
    HashedFile(path, key).write(b"old")
    HashedFile(path, key).write(b"new")
    path.write_bytes(b"old")
    with pytest.raises(DamagedError):
        HashedFile(path, key).read()


def test_read_or_warn(path):
    file = HashedFile(path, b"secret")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file.read_or_warn("making it again") is None
        file.write(b"content")
        assert file.read_or_warn("making it again") == b"content"
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=rf"^{path} is damaged; making it again$"):
        assert file.read_or_warn("making it again") is None
    HashedFile(path).write(b"content")
    with pytest.warns(UserWarning, match=rf"^{path} is not signed by the key; making it again$"):
        assert file.read_or_warn("making it again") is None


@pytest.fixture
def read_only(path, monkeypatch):
    """A file in a folder that nobody can write: root too, for whom permissions are none."""
    HashedFile(path).write(b"content")
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(path.parent, os.W_OK):  # as root

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(hashed, "replace_file", refuse)
        monkeypatch.setattr(hashed.FileLock, "acquire", refuse)
    yield HashedFile(path)
    path.parent.chmod(stat.S_IRWXU)


def test_a_folder_that_cannot_be_written_is_read_and_a_warning_once(read_only):
    assert read_only.read() == b"content"
    assert len(read_only.sha256()) == 64
    with read_only.locked_if_writable():
        assert read_only.read() == b"content"
    with pytest.raises(PermissionError), read_only.locked():
        pass
    with pytest.raises(PermissionError):
        read_only.write(b"new")
    with pytest.warns(UserWarning, match=rf"^kernels are not kept in {read_only.path} \(.*Permission denied"):
        read_only.write_or_warn("kernels", b"new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_only.write_or_warn("kernels", b"new")
    assert read_only.read() == b"content"


def test_a_file_in_the_folders_place(path):
    path.parent.write_text("in the way")
    assert HashedFile(path).read() is None
    with pytest.warns(UserWarning, match="kernels are not kept in"):
        HashedFile(path).write_or_warn("kernels", b"content")
    assert path.parent.read_text() == "in the way"


@pytest.mark.parametrize("mode", [None, 0o755])
def test_who_may_look_into_the_folder_that_is_made(mode, path):
    file = HashedFile(path, folder_mode=mode)
    if mode is None:
        with pytest.raises(FileNotFoundError):
            file.write(b"content")
        assert not path.parent.exists()
    else:
        file.write(b"content")
        assert stat.S_IMODE(path.parent.stat().st_mode) == mode


def test_removed(path):
    file = HashedFile(path)
    file.remove()
    file.write(b"content")
    file.remove()
    assert file.read() is None
    assert not path.exists()


@pytest.mark.parametrize("reads", [0, 1], ids=["before it is read", "before its hash is"])
def test_what_is_removed_meanwhile_is_not_damaged(reads, path, monkeypatch):
    """As the engine cache does to make room: it was not there, then."""
    HashedFile(path).write(b"content", FIELDS)
    read, calls = hashed.read_regular, []

    def and_removed(*arguments):
        if len(calls) == reads:
            HashedFile(path).remove()
        calls.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(hashed, "read_regular", and_removed)
    assert HashedFile(path).read(FIELDS) is None
    assert len(calls) == 2


def test_an_error_inside_is_not_taken_for_one_of_the_lock(path):
    for lock in (HashedFile(path).locked, HashedFile(path).locked_if_writable):
        with pytest.raises(PermissionError, match="inside"), lock():
            raise PermissionError("inside")
        with ThreadPoolExecutor(1) as pool:  # and it was given back
            pool.submit(HashedFile(path).write, b"content").result(timeout=30)


def test_who_holds_the_lock_may_read_and_write(path):
    file = HashedFile(path)
    with file.locked():
        file.write(b"content")
        assert file.read() == b"content"


@pytest.mark.parametrize("lock", ["locked", "locked_if_writable"])
def test_others_wait(lock, path):
    file, other = HashedFile(path), HashedFile(path)
    file.write(b"old")
    with ThreadPoolExecutor(2) as pool:
        with getattr(file, lock)():
            reading, writing = pool.submit(other.read), pool.submit(HashedFile(path).write, b"new")
            assert not wait([reading, writing], timeout=0.3).done
            path.write_bytes(b"half of another")
            path.write_bytes(b"old")
        assert reading.result() in (b"old", b"new")
        writing.result()
    assert file.read() == b"new"


def test_writers_and_readers_at_the_same_time(path):
    contents = [bytes([index]) * 10_000 for index in range(6)]
    HashedFile(path).write(contents[0])

    def work(content: bytes) -> None:
        file = HashedFile(path)
        for _ in range(10):
            file.write(content)
            assert file.read() in contents

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, contents))


def test_threads_may_share_an_object(path):
    file, start = HashedFile(path), threading.Barrier(4)

    def add(name: str) -> None:
        start.wait()
        for index in range(10):
            with file.locked():
                file.write((file.read() or b"") + f"{name}{index} ".encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, "abcd"))
    assert len(file.read().split()) == 40


# Files that were not written here


@pytest.fixture
def computed(monkeypatch):
    """The files that were hashed."""
    digest, names = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: names.append(file.name) or digest(file, name))
    return names


def test_the_hash_of_a_file_is_computed_once(path, computed):
    path.parent.mkdir()
    path.write_bytes(b"content")
    for _ in range(3):
        assert HashedFile(path).sha256() == hashlib.sha256(b"content").hexdigest()
    assert computed == [str(path)]


@pytest.mark.parametrize("change", ["size", "time"])
def test_the_hash_of_a_changed_file_is_computed_again(change, path, computed):
    path.parent.mkdir()
    path.write_bytes(b"content")
    HashedFile(path).sha256()
    before = path.stat()
    new = b"contents" if change == "size" else b"CONTENT"
    path.write_bytes(new)
    later = 1 if change == "time" else 0  # a nanosecond
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    assert HashedFile(path).sha256() == hashlib.sha256(new).hexdigest()
    assert len(computed) == 2


@pytest.mark.parametrize("field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_uid"])
def test_the_hash_of_another_file_is_computed_again(field, path, computed, monkeypatch):
    path.parent.mkdir()
    path.write_bytes(b"content")
    HashedFile(path).sha256()
    status = path.stat()
    told = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(**told | {field: told[field] + 1}))
    for _ in range(2):
        assert HashedFile(path).sha256() == hashlib.sha256(b"content").hexdigest()
    assert len(computed) == 2


def test_the_hash_of_a_file_beside_a_damaged_one(path, computed):
    path.parent.mkdir()
    path.write_bytes(b"content")
    beside(path).write_text("{")
    assert HashedFile(path).sha256() == hashlib.sha256(b"content").hexdigest()
    beside(path).unlink()
    beside(path).mkdir()  # it cannot be written
    for _ in range(2):
        assert HashedFile(path).sha256() == hashlib.sha256(b"content").hexdigest()
    beside(path).rmdir()
    HashedFile(path).sha256()
    (record,) = json.loads(beside(path).read_text())
    beside(path).write_text(json.dumps([{**record, "sha256": 3}]))
    assert HashedFile(path).sha256() == record["sha256"]
    assert len(computed) == 5


def test_everybody_may_read_the_hash_of_a_file(path):
    path.parent.mkdir()
    path.write_bytes(b"content")
    before = os.umask(0o022)
    try:
        HashedFile(path).sha256()
    finally:
        os.umask(before)
    assert stat.S_IMODE(beside(path).stat().st_mode) == 0o644


def test_the_hash_of_no_file(path):
    with pytest.raises(FileNotFoundError):
        HashedFile(path).sha256()
    path.parent.mkdir()
    path.symlink_to("/dev/null")  # or a pipe, which would be waited for
    with pytest.raises(OSError, match="a pipe or a device"):
        HashedFile(path).sha256()
    assert not beside(path).exists()
