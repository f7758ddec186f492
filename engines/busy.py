"""How many of this machine's cores others use: what makes a measured speed worthless, and no timing shows.

Linux counts in /proc/stat how long each core was busy: with processes, with interrupts, and with other virtual machines
that share it. What is left without this process's own time is others'.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
LIMIT = Path("/sys/fs/cgroup/cpu.max")  # in a container: microseconds of cores' time, and of the time they are for
LEAST = 0.3  # seconds: cores are counted in hundredths, so of shorter times little is known
FREE = 0.05  # of the cores: so much is always used by others
IDLE = (3, 4)  # among the columns of a core: idle, and waiting for a disk
GUEST = 8  # the first column that is of guests, which are counted among the others already


class Others:
    """What other processes use from now on, of the cores that this one may run on."""

    def __init__(self) -> None:
        self.cores = len(_own_cores())
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), time.process_time()

    def used(self) -> float | None:
        """Cores, on average; None where it cannot be known, or not yet."""
        busy, own, wall = _busy_seconds(), time.process_time(), time.perf_counter() - self._start
        if self._busy is None or busy is None or wall < LEAST:
            return None
        return max(0.0, busy - self._busy - (own - self._own)) / wall


def disturbed(used: float | None, cores: int, threads: int) -> bool:
    """Whether so many threads of ours and what others use have too few cores. used: as `Others.used` has it"""
    return used is not None and used > FREE * cores and used + threads > cores * (1 + FREE)


def allowed() -> float:
    """Cores that this process may use, on average: those that it may run on, or what its container is limited to."""
    cores = float(len(_own_cores()))
    try:
        quota, period = LIMIT.read_text(encoding="ascii").split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or "max": one without a limit
        return cores


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Of all these cores together since the machine started; None where there is no /proc/stat of ours to read."""
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
        ticks = [[*map(int, line.split()[1:])] for line in lines if _is_of(line, _own_cores())]
    except (OSError, ValueError):
        return None
    if not ticks:
        return None
    busy = sum(sum(count for column, count in enumerate(core[:GUEST]) if column not in IDLE) for core in ticks)
    return busy / os.sysconf("SC_CLK_TCK")


def _is_of(line: str, cores: set[int]) -> bool:
    name = line.partition(" ")[0]
    return name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores
