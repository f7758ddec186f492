"""The engine cache where others write too: their folders, files and processes; full disks."""

import errno
import hashlib
import json
import os
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bundle_samples import filled, images, need_openvino, same, saved
from filelock import FileLock

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.engines import cache
from conformer_fast.storage import lock as lock_module
from conformer_fast.storage.hashed import HashedFile
from conformer_fast.storage.lock import held

FIELDS = {"backend": "openvino", "precision": "fp32", "height": 32, "width": 32}
OTHER = {**FIELDS, "height": 64}
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="not of Windows")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own. It does not exist yet."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def path_of(fields) -> Path:
    return cache.engines_folder() / f"{cache.key_of(fields)}.engine"


# Folders


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720], ids=oct)
def test_a_folder_that_others_may_write_is_not_used(mode, folder):
    """Neither what lies there nor to keep anything; said once."""
    cache.cached(FIELDS, lambda: b"theirs")
    folder.chmod(mode)
    before = sorted(folder.iterdir())
    with pytest.warns(
        UserWarning, match=rf"^the engine cache {folder} is not used: other users may write {folder}; chmod"
    ):
        assert cache.cached(FIELDS, lambda: b"ours") == b"ours"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.cached(OTHER, lambda: b"ours") == b"ours"
        assert cache.remembered(FIELDS, lambda: "ours") == "ours"
    assert sorted(folder.iterdir()) == before
    folder.chmod(0o755)
    assert cache.cached(FIELDS, lambda: b"ours") == b"theirs"


@posix
@pytest.mark.parametrize(("mode", "used"), [(0o777, False), (0o1777, True)], ids=["all", "sticky"])
def test_a_folder_in_one_that_others_may_write_is_used_if_they_cannot_replace_it(mode, used, folder):
    cache.cached(FIELDS, lambda: b"theirs")
    folder.parent.chmod(mode)
    if used:
        assert cache.cached(FIELDS, lambda: b"ours") == b"theirs"
    else:
        with pytest.warns(UserWarning, match=rf"other users may write {folder.parent}; chmod"):
            assert cache.cached(FIELDS, lambda: b"ours") == b"ours"


@posix
@pytest.mark.parametrize(("user", "used"), [(0, True), (12345, False)], ids=["root", "another user"])
def test_whose_folder_is_used(user, used, folder, monkeypatch):
    """Root's too, as in a container's image; but root, too, runs nobody else's."""
    cache.cached(FIELDS, lambda: b"theirs")
    stat = Path.stat

    def owned(path, **options):
        status = stat(path, **options)
        return os.stat_result((*status[:4], user, *status[5:])) if path == folder else status

    monkeypatch.setattr(Path, "stat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if used else 0)
    if used:
        assert cache.cached(FIELDS, lambda: b"ours") == b"theirs"
    else:
        with pytest.warns(UserWarning, match="engines is user 12345's; set CONFORMER_FAST_CACHE"):
            assert cache.cached(FIELDS, lambda: b"ours") == b"ours"


# Entries


def put_in_place(of: Path, place: Path) -> None:
    for suffix in ("", ".hash"):
        shutil.copy(f"{of}{suffix}", f"{place}{suffix}")


def test_another_models_engine_under_this_name_is_not_taken():
    """Whole, with the hash that fits it."""
    for fields, engine in ((FIELDS, b"one"), (OTHER, b"other")):
        cache.cached(fields, lambda engine=engine: engine)
    put_in_place(path_of(OTHER), path_of(FIELDS))
    with pytest.warns(UserWarning, match="is damaged: it was written for something else, and renamed; building it"):
        assert cache.cached(FIELDS, lambda: b"again") == b"again"
    assert cache.cached(FIELDS, lambda: b"") == b"again"
    cache.remembered(FIELDS, lambda: "one")
    cache.remembered(OTHER, lambda: "other")
    put_in_place(path_of(OTHER).with_suffix(".text"), path_of(FIELDS).with_suffix(".text"))
    with pytest.warns(UserWarning, match="is damaged: it was written for something else"):
        assert cache.remembered(FIELDS, lambda: "one") == "one"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.write_text('[{"sha256": "", "fields": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}]")


def deep_as_can_be_read(path: Path) -> None:
    path.write_text('[{"sha256": "", "fields": {"a": ' + "[" * 900 + "]" * 900 + "}}]")


def huge(path: Path) -> None:
    """A hash that would be right."""
    record = {"sha256": hashlib.sha256(b"engine").hexdigest(), "fields": FIELDS}
    path.write_text(" " * (1 << 20) + json.dumps([record]))


@posix
@pytest.mark.timeout(30)
@pytest.mark.parametrize("suffix", ["", ".hash"], ids=["engine", "hash"])
@pytest.mark.parametrize("make", [make_pipe, link_to_a_device, deep, deep_as_can_be_read, huge])
def test_strange_files_are_replaced_with_a_warning(make, suffix):
    cache.cached(FIELDS, lambda: b"engine")
    path = Path(f"{path_of(FIELDS)}{suffix}")
    path.unlink()
    make(path)
    cache.cached_engines()
    with pytest.warns(UserWarning, match="is damaged; building it again"):
        assert cache.cached(FIELDS, lambda: b"engine") == b"engine"
    assert cache.cached(FIELDS, lambda: b"") == b"engine"
    assert Path("/dev/zero").is_char_device()


def test_an_engine_that_openvino_refuses_is_built_again(small_model):
    need_openvino()
    batch = images(1, 3, 32, 32)
    expected = cf.compile(small_model, backend="openvino", precision="fp32")(batch)
    (entry,) = [entry for entry in cache.cached_engines() if "height" in entry.fields]
    HashedFile(path_of(entry.fields)).write(b"no engine at all", entry.fields)  # under a right hash
    with pytest.warns(UserWarning, match=r"OpenVINO refuses the kept engine for 1 of 32x32 .*; building it again"):
        assert same(cf.compile(small_model, backend="openvino", precision="fp32")(batch), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cf.compile(small_model, backend="openvino", precision="fp32")(batch), expected)


def test_a_signed_bundle_takes_nothing_from_the_cache(small_config, tmp_path):
    """Not even with a hash that fits: nobody has signed what is there."""
    need_openvino()
    model, key = filled(Conformer(small_config)), b"a secret of this size"
    signed = saved(tmp_path / "signed", "openvino", model, key)
    unsigned = saved(tmp_path / "unsigned", "openvino", model)
    batch = images(1, 3, 64, 32)  # of a size that is not in the bundles
    expected = cf.load(unsigned)(batch)
    for entry in cache.cached_engines():
        HashedFile(path_of(entry.fields)).write(b"no engine at all", entry.fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cf.load(signed, key=key)(batch), expected)
        assert same(cf.load(signed)(batch), expected)
    with pytest.warns(UserWarning, match="OpenVINO refuses the kept engine"):
        cf.load(unsigned)(batch)


# Room


def test_short_texts_make_room_too(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT_BYTES", 10 * cache.TEXT_BYTES)
    for index in range(30):
        cache.remembered({"index": index}, str)
        os.utime(path_of({"index": index}).with_suffix(".text"), (1e9 + index, 1e9 + index))
    assert len(list(folder.glob("*.text"))) == len(list(folder.glob("*.hash"))) == 10
    assert cache.remembered({"index": 29}, lambda: "computed again") == ""


def test_a_full_disk_makes_room(folder, monkeypatch):
    """Least recently used first, and no more than needed."""
    for index in range(5):
        cache.cached({"index": index}, lambda: bytes(100))
        os.utime(path_of({"index": index}), (1e9 + index, 1e9 + index))
    replace = os.replace

    def full(source, target):
        if (
            Path(target).suffix == ".engine"
            and sum(path.stat().st_size for path in folder.glob("*.engine")) + os.path.getsize(source) > 500
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.cached(FIELDS, lambda: bytes(100)) == bytes(100)
    assert {entry.key for entry in cache.cached_engines()} == {
        cache.key_of(fields) for fields in (FIELDS, *({"index": index} for index in (2, 3, 4)))
    }


# Locks


@pytest.fixture
def waited(monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.1)


def test_who_waits_is_told_for_whom(waited, folder):
    inside, may_end = threading.Event(), threading.Event()

    def slow() -> bytes:
        inside.set()
        assert may_end.wait(30)
        return b"engine"

    told = []

    def tell(message, *_, **__):
        told.append(str(message))
        may_end.set()

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", tell)
        running = pool.submit(cache.cached, FIELDS, slow)
        assert inside.wait(30)
        assert cache.cached(FIELDS, lambda: b"another") == b"engine"
        assert running.result() == b"engine"
    lock = f"{path_of(FIELDS)}.lock"
    assert told == [f"waiting for {lock}, which process {os.getpid()} has held for over 0.1 s"]


def test_locks_do_not_pile_up(folder):
    for index in range(3):
        cache.cached({"index": index}, lambda: b"engine")
        cache.cached({"index": index}, lambda: b"")
    assert {path.suffix for path in folder.iterdir()} == {".engine", ".hash"}


@pytest.mark.skipif(os.name == "nt", reason="no file that is open is removed there")
def test_clearing_leaves_a_lock_that_is_held():
    def clear_meanwhile() -> bytes:
        cache.clear_cache()
        assert Path(f"{path_of(FIELDS)}.lock").exists()
        return b"engine"

    assert cache.cached(FIELDS, clear_meanwhile) == b"engine"


def test_clearing_waits_for_who_writes_and_removes_that_too(folder):
    cache.cached(FIELDS, lambda: b"engine")
    with ThreadPoolExecutor(1) as pool:
        with held(FileLock(folder / cache.ROOM_LOCK)):
            clearing = pool.submit(cache.clear_cache)
            with pytest.raises(TimeoutError):
                clearing.result(timeout=0.2)
            HashedFile(path_of(OTHER)).write(b"engine", OTHER)
        assert clearing.result(timeout=30) > 0
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("removed", range(4))
def test_clearing_that_is_broken_off_damages_nothing(removed, monkeypatch):
    for fields in (FIELDS, OTHER):
        cache.cached(fields, lambda: b"engine")
    unlink, calls = Path.unlink, []

    def until_killed(path, **options):
        if path.suffix in (".engine", ".hash"):
            calls.append(path)
            if len(calls) > removed:
                raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", until_killed)
        with pytest.raises(KeyboardInterrupt):
            cache.clear_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(cache.cached(fields, lambda: b"engine") == b"engine" for fields in (FIELDS, OTHER))


# The list


def test_the_list_survives_any_entry(capsys):
    from conformer_fast.cli.main import main

    fields = {"backend": "a\x1b[2J\nb", "precision": ["x"] * 99, "targets": [3, None], "height": {"a": "\u202e"}}
    for index, more in enumerate((fields, {"targets": 3}, {"targets": "sm86"}, {"backend": None, "height": 1})):
        cache.cached({"index": index, **more}, lambda: b"engine")
    HashedFile(cache.engines_folder() / f"{'0' * 32}.engine").write(b"", {"backend": "not of this name"})
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert all(letter.isprintable() for letter in out.replace("\n", ""))
    assert len(out.splitlines()) == 2 + 4
    assert r"a\x1b[2J\nb" in out
    assert main(["cache", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["result"]["engines"]) == 4
