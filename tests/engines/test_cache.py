"""The engines on disk: one key an engine, whole or absent, rebuilt when damaged, built once, bounded."""

import multiprocessing
import os
import stat
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from conformer_fast.engines import cache

FIELDS = {
    "weights": "abc",
    "config": {"depth": 3, "heads": 1},
    "outputs": ["a", "b"],
    "precision": "fp32",
    "height": 32,
}
ENGINE = bytes(range(256)) * 40
KEY = "0123456789abcdef" * 2
PART = f"{KEY}.engine.{KEY}.part"  # what a broken-off write leaves


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own. It does not exist yet."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


class Builder:
    """Counts how often it builds; each call sleeps `seconds`."""

    def __init__(self, engine: bytes = ENGINE, seconds: float = 0) -> None:
        self.engine, self.seconds, self.calls = engine, seconds, 0

    def __call__(self) -> bytes:
        self.calls += 1
        time.sleep(self.seconds)
        return self.engine


def fail() -> bytes:
    raise AssertionError("built, though it was in the cache")


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


def beside(engine: Path) -> Path:
    """Where its hash is."""
    return engine.with_name(f"{engine.name}.hash")


def test_builds_once_and_reads_afterwards(folder):
    builder = Builder()
    assert cache.cached(FIELDS, builder) == ENGINE
    assert cache.cached(dict(reversed(FIELDS.items())), fail) == ENGINE  # the order of the fields says nothing
    assert builder.calls == 1
    (engine,) = files(folder, ".engine")
    assert engine.read_bytes() == ENGINE
    assert engine.stem == cache.key_of(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_key_depends_on_every_field(name):
    def altered(value):
        if isinstance(value, dict):
            return {**value, "depth": value["depth"] + 3}
        return [*value, "c"] if isinstance(value, list) else value * 2

    others = [
        {**FIELDS, name: altered(FIELDS[name])},
        {key: value for key, value in FIELDS.items() if key != name},
        {**FIELDS, f"{name}s": FIELDS[name]},
    ]
    keys = {cache.key_of(fields) for fields in [FIELDS, *others]}
    assert len(keys) == 4
    assert all(len(key) == 32 and int(key, 16) for key in keys)


def test_key_sees_the_order_of_outputs():
    assert cache.key_of(FIELDS) != cache.key_of({**FIELDS, "outputs": ["b", "a"]})


def test_entries_of_different_fields_live_together():
    cache.cached(FIELDS, Builder(b"one"))
    cache.cached({**FIELDS, "height": 64}, Builder(b"two"))
    assert cache.cached(FIELDS, fail) == b"one"
    assert cache.cached({**FIELDS, "height": 64}, fail) == b"two"


def flip_byte(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def swap_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "flipped byte": flip_byte,
    "truncated": lambda engine: os.truncate(engine, len(ENGINE) - 1),
    "emptied": lambda engine: os.truncate(engine, 0),
    "longer": lambda engine: engine.write_bytes(ENGINE + b"\0"),
    "engine deleted": lambda engine: engine.unlink(),
    "empty hash": lambda engine: beside(engine).write_text(""),
    "cut hash": lambda engine: os.truncate(beside(engine), 40),
    "hash of bytes": lambda engine: beside(engine).write_bytes(b"\xff\xfe\0"),
    "hash of null": lambda engine: beside(engine).write_text("null"),
    "hash without a digest": lambda engine: beside(engine).write_text('[{"fields": {}}]'),
    "a number as digest": lambda engine: beside(engine).write_text('[{"fields": {}, "sha256": 3}]'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entry_is_rebuilt_with_a_warning(damage, folder):
    cache.cached(FIELDS, Builder())
    (engine,) = files(folder, ".engine")
    damage(engine)
    builder = Builder()
    with pytest.warns(UserWarning, match=rf"{engine} is damaged; building it again"):
        assert cache.cached(FIELDS, builder) == ENGINE
    assert builder.calls == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.cached(FIELDS, fail) == ENGINE
    assert [entry.key for entry in cache.cached_engines()] == [engine.stem]


@pytest.mark.parametrize("suffix", [".engine", ".hash"])
def test_entry_that_cannot_be_replaced_still_works(suffix, folder):
    cache.cached(FIELDS, Builder())
    swap_for_a_folder(files(folder, suffix)[0])
    builder = Builder()
    with pytest.warns(UserWarning, match="damaged|not kept") as caught:
        assert cache.cached(FIELDS, builder) == ENGINE
    assert builder.calls == 1
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "is damaged; building it again" in texts[0]
    assert f"engines are not kept in {folder}" in texts[1]


def test_missing_hash_means_no_entry(folder):
    cache.cached(FIELDS, Builder())
    files(folder, ".hash")[0].unlink()
    assert cache.cached_engines() == []
    builder = Builder(b"new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.cached(FIELDS, builder) == b"new"
    assert cache.cached(FIELDS, fail) == b"new"


def test_each_file_appears_whole_and_the_hash_last(monkeypatch):
    seen = []

    def watched(source, target):
        target = Path(target)
        seen.append((target.suffix, Path(source).read_bytes(), target.exists(), Path(source).parent == target.parent))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", watched)
    cache.cached(FIELDS, Builder())
    assert [(suffix, existed, same_folder) for suffix, _, existed, same_folder in seen] == [
        (".engine", False, True),
        (".hash", False, True),
    ]
    assert seen[0][1] == ENGINE


@pytest.mark.parametrize("broken", [".engine", ".hash"])
def test_write_that_fails_leaves_no_entry(broken, folder, monkeypatch):
    def refusing(source, target):
        if Path(target).suffix == broken:
            raise OSError(28, "No space left on device")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", refusing)
    with pytest.warns(UserWarning, match=rf"engines are not kept in {folder}.*No space left"):
        assert cache.cached(FIELDS, Builder()) == ENGINE
    assert cache.cached_engines() == []
    assert files(folder, ".part") == []
    monkeypatch.setattr(os, "replace", rename)
    builder = Builder()
    assert cache.cached(FIELDS, builder) == ENGINE
    assert builder.calls == 1


def test_failed_build_leaves_no_entry_and_no_lock():
    def broken() -> bytes:
        raise RuntimeError("no engine today")

    with pytest.raises(RuntimeError, match="no engine today"):
        cache.cached(FIELDS, broken)
    assert cache.cached_engines() == []
    assert cache.cached(FIELDS, Builder()) == ENGINE


def test_only_the_user_may_look_inside(folder):
    cache.cached(FIELDS, Builder())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (engine,) = files(folder, ".engine")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (engine, beside(engine))} == {0o600}


@pytest.mark.parametrize("where", ["engines", "."], ids=["engines is a file", "the cache is a file"])
def test_unusable_folder_is_a_warning(where, folder):
    blocked = folder.parent / where
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    builder = Builder()
    with pytest.warns(UserWarning, match=rf"engines are not kept in {folder}") as caught:
        assert cache.cached(FIELDS, builder) == ENGINE
    assert len(caught) == builder.calls == 1
    assert cache.cached_engines() == []
    assert cache.clear_cache() == 0


@pytest.fixture
def unwritable(folder) -> Path:
    """The folder with one engine in it and no way to make room, mark a use, lock or write: the lock is a folder."""
    cache.cached(FIELDS, Builder())
    for fields in (FIELDS, {**FIELDS, "height": 64}):
        lock = folder / f"{cache.key_of(fields)}.engine.lock"
        lock.unlink(missing_ok=True)
        lock.mkdir()
    return folder


def test_lock_that_cannot_be_opened_is_a_warning(unwritable):
    with pytest.warns(UserWarning, match=rf"engines are not kept in {unwritable}"):
        assert cache.cached({**FIELDS, "height": 64}, Builder()) == ENGINE


def test_engines_that_lie_in_a_folder_that_cannot_be_written_are_used(unwritable):
    """As in a container's read-only image."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.cached(FIELDS, fail) == ENGINE


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission_is_a_warning(folder):
    folder.mkdir(parents=True, mode=0o500)
    with pytest.warns(UserWarning, match="engines are not kept"):
        assert cache.cached(FIELDS, Builder()) == ENGINE


def test_entry_removed_while_it_is_read(folder, monkeypatch):
    """Another process makes room just then."""
    cache.cached(FIELDS, Builder())

    def gone(path, *_):
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "utime", gone)
    assert cache.cached(FIELDS, fail) == ENGINE


def add(height: int, size: int, used: float) -> str:
    """An entry of `size` bytes last used at `used`; returns its key."""
    fields = {**FIELDS, "height": height}
    cache.cached(fields, Builder(bytes(size)))
    os.utime(cache.engines_folder() / f"{cache.key_of(fields)}.engine", (used, used))
    return cache.key_of(fields)


def test_least_recently_used_go_first(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1000)
    first, second, third = (add(height, 300, used) for height, used in ((1, 1.0e9), (2, 1.1e9), (3, 1.2e9)))
    assert [entry.key for entry in cache.cached_engines()] == [third, second, first]
    cache.cached({**FIELDS, "height": 1}, fail)  # used now
    assert [entry.key for entry in cache.cached_engines()] == [first, third, second]

    fourth = add(4, 400, 1.3e9)
    assert [entry.key for entry in cache.cached_engines()] == [first, fourth, third]
    assert not list(folder.glob(f"{second}.engine")) + list(folder.glob(f"{second}.engine.hash"))
    fifth = add(5, 700, 1.4e9)
    assert [entry.key for entry in cache.cached_engines()] == [first, fifth]


def test_reading_counts_as_use():
    key = add(1, 10, 1e9)
    assert cache.cached_engines()[0].used == 1e9
    before = time.time()
    cache.cached({**FIELDS, "height": 1}, fail)
    (entry,) = cache.cached_engines()
    assert entry.key == key
    assert entry.used >= before - 2


def test_exactly_the_limit_fits(monkeypatch):
    monkeypatch.setattr(cache, "LIMIT_BYTES", 600)
    add(1, 300, 1e9)
    add(2, 300, 2e9)
    assert len(cache.cached_engines()) == 2


@pytest.mark.parametrize("name", [f"{KEY}.engine", PART], ids=["without a hash", "broken off"])
def test_what_a_killed_process_left_counts_too(name, folder, monkeypatch):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(bytes(900))
    os.utime(folder / name, (1e9, 1e9))
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1000)
    add(1, 300, 2e9)
    assert not (folder / name).exists()
    assert len(cache.cached_engines()) == 1


def test_what_cannot_be_removed_to_make_room_stays(folder, monkeypatch):
    (folder / PART).mkdir(parents=True)
    os.utime(folder / PART, (1e9, 1e9))  # the first to go
    monkeypatch.setattr(cache, "LIMIT_BYTES", 0)
    first, second = add(1, 300, 2e9), add(2, 300, 3e9)
    assert [entry.key for entry in cache.cached_engines()] == [second]
    assert first != second


def test_entries_say_what_is_there(folder):
    assert cache.cached_engines() == []
    first, second = add(1, 10, 1e9), add(2, 20, 2e9)
    assert cache.cached_engines() == [
        cache.CachedEngine(second, {**FIELDS, "height": 2}, 20, 2e9),
        cache.CachedEngine(first, {**FIELDS, "height": 1}, 10, 1e9),
    ]
    (folder / f"{first}.engine.hash").write_text("{")
    (folder / "stray.engine.hash").write_text((folder / f"{second}.engine.hash").read_text())
    assert [entry.key for entry in cache.cached_engines()] == [second]


def test_clear_removes_everything_of_ours_and_nothing_else(folder):
    assert cache.clear_cache() == 0
    add(1, 1000, 1e9)
    add(2, 500, 2e9)
    (folder / PART).write_bytes(bytes(50))
    (folder / f"{KEY}.engine.lock").touch()  # of a killed process
    theirs = (
        "notes.txt",
        "a.engine",
        "a.engine.hash",
        "x.part",
        "yolo.json",
        f"{KEY}.json",
        f"{KEY}0.engine",
        "b.lock",
    )
    for name in theirs:
        (folder / name).write_text("mine")
    freed = cache.clear_cache()
    assert 1550 < freed < 1550 + 2000  # the hashes too
    assert {path.name for path in folder.iterdir()} == set(theirs)
    assert cache.cached_engines() == []
    builder = Builder()
    cache.cached({**FIELDS, "height": 1}, builder)
    assert builder.calls == 1


def test_threads_build_once():
    builder = Builder(seconds=0.2)
    start = threading.Barrier(4)

    def work(_) -> bytes:
        start.wait()
        return cache.cached(FIELDS, builder)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [ENGINE] * 4
    assert builder.calls == 1


def test_other_engines_are_not_waited_for():
    """A slow build locks its own key only."""
    inside, may_end = threading.Event(), threading.Event()

    def slow() -> bytes:
        inside.set()
        assert may_end.wait(30)
        return ENGINE

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cache.cached, FIELDS, slow)
        assert inside.wait(30)
        assert cache.cached({**FIELDS, "height": 64}, Builder(b"other")) == b"other"
        assert not running.done()
        may_end.set()
        assert running.result() == ENGINE


def build_in_a_process(start, results, log: Path) -> None:
    """Run by test_processes_build_once in two new processes, which share the parent's environment."""

    def build() -> bytes:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(1)
        return ENGINE

    start.wait()
    results.put(cache.cached(FIELDS, build) == ENGINE)


def test_processes_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results, log = context.Barrier(2), context.Queue(), tmp_path / "log"
    processes = [context.Process(target=build_in_a_process, args=(start, results, log)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [True, True]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    assert cache.cached(FIELDS, fail) == ENGINE


def test_a_failed_build_gives_the_lock_back(tmp_path, monkeypatch):
    """Also while somebody holds the exception, as an interactive session does."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        cache.cached({"key": 1}, fail)
    assert cache.cached({"key": 1}, lambda: b"engine") == b"engine"
    assert kept


def test_the_bound_holds_when_several_write_at_once(monkeypatch):
    """Nobody makes room while another one, who has made his, has not written yet."""
    monkeypatch.setattr(cache, "LIMIT_BYTES", 1000)
    make_room, both = cache._make_room, threading.Barrier(2)

    def and_wait(size: int) -> None:
        make_room(size)
        with suppress(threading.BrokenBarrierError):  # as it should: the other is kept waiting
            both.wait(timeout=0.5)

    add(1, 600, 1e9)
    monkeypatch.setattr(cache, "_make_room", and_wait)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda height: cache.cached({**FIELDS, "height": height}, Builder(bytes(600))), (2, 3)))
    assert sum(entry.size for entry in cache.cached_engines()) == 600
