"""One run of the suite: its time, its processes, and the rows that it puts into the result file."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .processes import Ended, Process, Processes
from .results import Key, Results
from .tree import CACHES

POINT_SECONDS = 75.0  # for one measurement, after which it has failed
LEAST_SECONDS = 12.0  # with less left, nothing is started
MOST_PROCESSES = 8  # that use the GPU at a time
GIB_A_PROCESS = 8  # what one of them may need
BACKGROUND_SECONDS = 45.0  # that what is timed waits for it, at most
PEERS = ("eager", "torch.compile", "torch.compile max-autotune")


@dataclass
class Session:
    """folder: for the processes' results. site: where the package is installed for them. end: by time.monotonic.

    failures: what the exit status must tell
    left:     what there was no time for
    """

    results: Results
    processes: Processes
    folder: Path
    site: Path
    end: float
    variants: Sequence[str]
    batches: Sequence[int]
    say: Callable[[str], None] = print
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    background: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._step_end = self.end
        for row in self.results.entry["steps"]:
            row["earlier"] = True

    @property
    def seconds_left(self) -> float:
        """Of the step that runs."""
        return self._step_end - time.monotonic()

    def step(self, name: str, seconds: float, run: Callable[[Session], str]) -> None:
        """Runs a step for so many seconds at most, with a row that says how it went: before, that it did not end."""
        self._step_end = min(self.end, time.monotonic() + seconds)
        if self.seconds_left < LEAST_SECONDS:
            self.left.append(name)
            self._note(name, {"outcome": "no time left"})
            return
        start, failures = time.monotonic(), len(self.failures)
        row: dict[str, Any] = {"outcome": "cut short", "failed": "the suite was ended while this ran"}
        try:
            self.results.put("steps", (name,), {"outcome": "begun", "failed": "the suite was killed while this ran"})
            self.say(f"{name}: at most {self.seconds_left:.0f} s")
            row = {"outcome": run(self)}
        except Exception as error:  # a fault of the suite's own must not cost the other steps
            row = {"outcome": "failed", "failed": f"{type(error).__name__}: {error}"[:300]}
            self.failures.append(f"step {name}: {row['failed']}")
        finally:
            self.processes.end(but=[job.process for job in self.background])  # what an error left running
            row["seconds"] = time.monotonic() - start
            row["failures"] = len(self.failures) - failures
            self._note(name, row)

    def _note(self, name: str, row: dict[str, Any]) -> None:
        self.results.put("steps", (name,), row)
        self.say(f"{name}: {row['outcome']}" + (f" in {row['seconds']:.0f} s" if "seconds" in row else ""))

    def each(self, keys: Iterable[Key], measure: Callable[[Key], Any]) -> None:
        """Calls measure(key) for every key while there is time."""
        for key in keys:
            if self.seconds_left < LEAST_SECONDS:
                self.left.append(" ".join(map(str, key)))
            else:
                measure(key)

    def start(self, task: str, nice: bool = False, **arguments: Any) -> Job:
        return Job(self.processes, self.folder, task, arguments, nice)

    def work(self, task: str, seconds: float = POINT_SECONDS, **arguments: Any) -> dict[str, Any]:
        """The result of a task of worker.py; with "failed", why, if it did not end well, "stopped" if it took longer
        than so many seconds, and "cut" if the time of the step was over first."""
        limit = min(seconds, self.seconds_left)
        job = self.start(task, **arguments)
        row = job.wait(limit)
        return row | {"cut" if limit < seconds else "stopped": True} if job.ended.code is None else row

    def together(
        self, task: str, arguments: Iterable[dict[str, Any]], most: int, seconds: float = math.inf
    ) -> list[dict[str, Any]]:
        """The results of a task for each of these arguments, so many at a time, as far as they end in time."""
        waiting, running, results = list(arguments), [], []
        until = time.monotonic() + min(seconds, self.seconds_left)
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < most:
                running.append(self.start(task, **waiting.pop(0)))
            ended = [job for job in running if not job.process.running]
            running = [job for job in running if job not in ended]
            results += [job.wait(0) for job in ended]
            time.sleep(0.05)
        return results + [job.wait(0) for job in running]

    @property
    def at_a_time(self) -> int:
        """How many processes may use the GPU and the CPU at a time."""
        return min(self.fitting(GIB_A_PROCESS), MOST_PROCESSES)

    def fitting(self, gib: int) -> int:
        """How many of such a size the cores and the GPU's memory hold."""
        return max(1, min(os.cpu_count() or 1, self.results.entry["machine"]["memory_gib"] // gib))

    def put(self, section: str, key: Key, row: dict[str, Any], may_fail: bool = False) -> None:
        """Stores a row, prints it and, unless it may fail or was cut, notes its failure."""
        row = self.results.put(section, key, row)
        name = " ".join(map(str, key))
        if row.get("cut"):
            self.left.append(name)
        elif "failed" in row and not may_fail:
            self.failures.append(f"{name}: {row['failed']}")
        self.say(f"{name}: {row.get('failed') or brief(row)}")

    def kept(self, row: dict[str, Any]) -> bool:
        """Whether a stored row still holds. A peer's does whatever our source is, and if the peer fails by itself."""
        if "ours_failed" in row or row.get("cut"):
            return False
        if "ceilings" in row and "ceilings" in self.results.entry:
            return False  # its floors were assumed, better ones are known now
        if row.get("implementation") in PEERS:
            return "stopped" not in row
        return "failed" not in row and row["source"] == self.results.stamp["source"]

    def kept_row(self, section: str, key: Key, **same: Any) -> dict[str, Any] | None:
        """The stored row if it still holds and has these values."""
        row = self.results.find(section, key)
        return row if row and self.kept(row) and same.items() <= row.items() else None

    def missing(self, section: str, keys: Sequence[Key]) -> list[Key]:
        return [key for key in keys if not self.kept_row(section, key)]

    def quiet(self) -> None:
        """Returns when nothing of ours runs in the background: what is timed is alone."""
        until = time.monotonic() + min(BACKGROUND_SECONDS, self.seconds_left - LEAST_SECONDS)
        while self.background:
            job = self.background.pop()
            row = job.wait(until - time.monotonic())
            for choice in (CACHES / "inductor").rglob("*.best_config"):  # torch.compile's, timed beside other work
                choice.unlink()
            self.say(f"{job.name}: {row.get('failed', 'compiled')} after {job.process.seconds:.0f} s in the background")


class Job:
    """A running task of worker.py, which writes its result into `folder`. nice: it gives way to others."""

    def __init__(
        self, processes: Processes, folder: Path, task: str, arguments: dict[str, Any], nice: bool = False
    ) -> None:
        self.name = " ".join([task, *(str(value) for value in arguments.values() if isinstance(value, str | int))])
        handle, name = tempfile.mkstemp(".json", dir=folder)
        os.close(handle)
        self._result = Path(name)
        command = [sys.executable, "-m", f"{__package__}.worker", task, json.dumps(arguments), name]
        self.process: Process = processes.start(["nice", *command] if nice else command)

    def so_far(self) -> dict[str, Any]:
        """What it has written."""
        text = self._result.read_text(encoding="utf-8")
        return json.loads(text) if text else {}

    def wait(self, seconds: float) -> dict[str, Any]:
        """What it has written when it ends or is ended after so many seconds; with "failed" if it did not end well."""
        self.ended: Ended = self.process.wait(seconds)
        value = self.so_far()
        return value if self.ended.code == 0 or "failed" in value else value | {"failed": self.ended.why}


def brief(row: dict[str, Any]) -> str:
    again = f" (before: {row['previous_ms']:.3f})" if "previous_ms" in row else ""
    if "ms" in row:
        return f"{row['ms']:.3f} ms{again}"
    return f"{row['sum_ms']:.3f} ms in all" if "sum_ms" in row else row.get("outcome", "")
