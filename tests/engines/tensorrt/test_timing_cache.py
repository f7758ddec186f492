"""The kept timings: given to the next build, merged with those of others, dropped when damaged, never in the way."""

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conformer_fast.engines.tensorrt import timing_cache
from conformer_fast.engines.tensorrt.flavors import Flavor

FLAVOR = Flavor("tensorrt", ModuleType("tensorrt"), "10.13.0")


@dataclass
class FakeCache:
    """Timings are lines of text."""

    lines: set[bytes]

    def combine(self, other: "FakeCache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch  # those of another GPU would be wrong
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


@dataclass
class FakeConfig:
    """accepts: whether bytes that are not empty are taken; given: what was."""

    accepts: bool = True
    given: list[bytes] = field(default_factory=list)
    attached: FakeCache | None = None

    def create_timing_cache(self, content: bytes) -> FakeCache:
        self.given.append(content)
        return FakeCache(set(content.split(b"\n")) - {b""})

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if not self.accepts and cache.lines:
            return False
        self.attached = cache
        return True


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own, on a pretended GPU. It does not exist yet."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA RTX/PRO 6000 (96 GB)")
    return tmp_path / "cache" / "timing"


def build(*lines: bytes, config: FakeConfig | None = None) -> FakeConfig:
    """A build that measures `lines`."""
    config = config or FakeConfig()
    cache = timing_cache.attach(config, FLAVOR)
    assert config.attached is cache
    cache.lines.update(lines)
    timing_cache.keep(cache, config, FLAVOR)
    return config


def attached() -> set[bytes]:
    config = FakeConfig()
    timing_cache.attach(config, FLAVOR)
    return config.attached.lines


def test_the_next_build_is_given_the_timings():
    assert build(b"conv 1", b"conv 2").given[0] == b""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attached() == {b"conv 1", b"conv 2"}


def test_one_file_a_flavor_version_and_gpu(folder, monkeypatch):
    build(b"conv")
    assert timing_cache.file_for(FLAVOR).name == "tensorrt-10.13.0-NVIDIA-RTX-PRO-6000-96-GB-.cache"
    assert timing_cache.file_for(FLAVOR).parent == folder
    others = {
        timing_cache.file_for(Flavor("tensorrt", FLAVOR.module, "10.13.1")),
        timing_cache.file_for(Flavor("other", FLAVOR.module, "10.13.0")),
    }
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    others.add(timing_cache.file_for(FLAVOR))
    assert len(others) == 3
    assert not any(file.exists() for file in others)
    assert attached() == set()


def test_what_another_build_wrote_meanwhile_is_kept():
    config = FakeConfig()
    cache = timing_cache.attach(config, FLAVOR)
    build(b"theirs")
    cache.lines.add(b"ours")
    timing_cache.keep(cache, config, FLAVOR)
    assert attached() == {b"ours", b"theirs"}


def test_nothing_is_lost_when_another_build_is_just_writing():
    """It waits from when we have read the kept timings until ours are among them."""
    build(b"old")
    with ThreadPoolExecutor(1) as pool:

        class Slow(FakeCache):
            def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
                theirs = pool.submit(timing_cache.keep, FakeCache({b"theirs"}), FakeConfig(), FLAVOR)
                assert not wait([theirs], timeout=0.3).done
                return super().combine(other, ignore_mismatch)

        timing_cache.keep(Slow({b"ours"}), FakeConfig(), FLAVOR)
    assert attached() == {b"old", b"ours", b"theirs"}


def beside(cache: Path) -> Path:
    """Where its hash is."""
    return cache.with_name(f"{cache.name}.hash")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped bit": flip,
    "truncated": lambda cache: os.truncate(cache, 3),
    "emptied": lambda cache: cache.write_bytes(b""),
    "longer": lambda cache: cache.write_bytes(cache.read_bytes() + b"\0"),
    "deleted": lambda cache: cache.unlink(),
    "flipped bit in the hash": lambda cache: flip(beside(cache)),
    "empty hash": lambda cache: beside(cache).write_bytes(b""),
    "hash of bytes": lambda cache: beside(cache).write_bytes(b"\xff\xfe\0"),
    "no hash in it": lambda cache: beside(cache).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_timings_never_reach_tensorrt(damage):
    build(b"conv 1", b"conv 2")
    file = timing_cache.file_for(FLAVOR)
    damage(file)
    config = FakeConfig()
    with pytest.warns(UserWarning, match=rf"{file} is damaged; building without its timings"):
        timing_cache.attach(config, FLAVOR)
    assert config.given == [b""]
    with pytest.warns(UserWarning, match="is damaged"):
        timing_cache.keep(FakeCache({b"new"}), config, FLAVOR)
    assert attached() == {b"new"}


def test_timings_without_a_hash_are_none():
    build(b"conv")
    beside(timing_cache.file_for(FLAVOR)).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attached() == set()


def test_timings_that_tensorrt_refuses_are_dropped():
    build(b"of another driver")
    config = FakeConfig(accepts=False)
    with pytest.warns(UserWarning, match=r"\.cache is refused by TensorRT 10\.13\.0; building without"):
        timing_cache.attach(config, FLAVOR)
    assert config.attached.lines == set()


def test_only_the_user_may_look_inside(folder):
    build(b"conv")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir() if file.suffix != ".lock"} == {0o600}


@pytest.mark.parametrize("where", ["timing", "."], ids=["timing is a file", "the cache is a file"])
def test_unusable_folder_is_a_warning(where, folder):
    blocked = folder.parent / where
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match=rf"timings are not kept in {folder}") as caught:
        config = build(b"conv")
    assert len(caught) == 1
    assert config.attached.lines == {b"conv"}


@pytest.mark.parametrize("broken", [".cache", ".hash"])
def test_write_that_fails_is_a_warning_and_leaves_what_was_there(broken, folder, monkeypatch):
    def refusing(source, target):
        if Path(target).suffix == broken:
            raise OSError(28, "No space left on device")
        rename(source, target)

    build(b"old")
    rename = os.replace
    monkeypatch.setattr(os, "replace", refusing)
    with pytest.warns(UserWarning, match=r"timings are not kept in .*No space left"):
        build(b"new")
    assert list(folder.glob("*.part")) == []
    monkeypatch.setattr(os, "replace", rename)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attached() == {b"old"}


def test_kept_timings_in_a_folder_that_cannot_be_written_are_used(folder):
    build(b"conv")
    lock = timing_cache.file_for(FLAVOR).with_suffix(".cache.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.warns(UserWarning, match="timings are not kept in"):
        assert build(b"new").given == [b"conv", b"conv"]
