"""What others use of the machine, on a pretended /proc/stat."""

from __future__ import annotations

import os
import time

import pytest

from conformer_fast.engines import busy

TICKS = 100  # a second
CORE = "cpu{} {user} 0 {system} {idle} {idle} 0 0 {stolen} {guest} 0"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(seconds, own, cores...): as so much later, so much of it this process's own; of each core the seconds
    that it was busy with users, the system and other machines. It is of cores 2 and 5 of eight."""
    stat, now, own = tmp_path / "stat", [0.0], [0.0]
    monkeypatch.setattr(busy, "STAT", stat)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": TICKS}[name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5}, raising=False)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: own[0])

    def be(seconds, own_seconds, first=(0, 0, 0), second=(0, 0, 0)):
        now[0], own[0] = seconds, own_seconds
        lines = ["cpu 999999 0 0 0 0 0 0 0 0 0"]
        for core in range(8):
            user, system, stolen = {2: first, 5: second}.get(core, (seconds * 9, 0, 0))
            times = {"user": user, "system": system, "idle": seconds, "stolen": stolen, "guest": user}
            lines.append(CORE.format(core, **{name: int(count * TICKS) for name, count in times.items()}))
        stat.write_text("\n".join([*lines, "intr 5 0 0", "ctxt 12"]) + "\n")

    be(0, 0)
    return be


def test_what_is_not_ours_is_others(machine):
    others = busy.Others()
    machine(10, 8, first=(6, 1, 0), second=(4, 0, 2))
    assert others.cores == 2
    assert others.used() == pytest.approx(0.5)


def test_what_was_before_does_not_count(machine):
    machine(10, 2, first=(9, 0, 0))
    others = busy.Others()
    machine(12, 3, first=(10, 0, 0))
    assert others.used() == 0


def test_more_time_of_ours_than_was_counted_is_none_of_others(machine):
    others = busy.Others()
    machine(1, 1.02, first=(1, 0, 0))
    assert others.used() == 0


def test_of_a_moment_nothing_is_known(machine):
    others = busy.Others()
    machine(busy.LEAST / 2, 0, first=(9, 0, 0))
    assert others.used() is None


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3\n", "cpu2 what\n", "cpu9 1 1 1 1 1 1 1 1 0 0\n"])
def test_without_a_count_nothing_is_known(machine, monkeypatch, tmp_path, content):
    other = tmp_path / "other"
    if content is not None:
        other.write_text(content)
    monkeypatch.setattr(busy, "STAT", other)
    others = busy.Others()
    machine(10, 0)
    assert others.used() is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="it counts there")
def test_here_it_counts():
    others = busy.Others()
    time.sleep(busy.LEAST)
    assert 0 <= others.used() <= others.cores * 1.2


@pytest.mark.parametrize(
    ("used", "cores", "threads", "disturbs"),
    [
        (None, 2, 2, False),
        (0.05, 2, 2, False),  # there is always something
        (0.5, 2, 2, True),
        (0.5, 2, 1, False),  # there is room for both
        (30.0, 64, 4, False),
        (30.0, 64, 64, True),
        (0.0, 2, 4, False),  # the threads are too many, which is no fault of others
    ],
)
def test_what_disturbs(used, cores, threads, disturbs):
    assert busy.disturbed(used, cores, threads) is disturbs


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 2), ("150000 100000\n", 1.5), ("800000 100000\n", 2), ("0 0\n", 2), ("", 2), (None, 2)],
)
def test_a_container_may_allow_less(machine, monkeypatch, tmp_path, content, cores):
    limit = tmp_path / "cpu.max"
    if content is not None:
        limit.write_text(content)
    monkeypatch.setattr(busy, "LIMIT", limit)
    assert busy.allowed() == cores
