"""What is run: tests, ours, quantised, peers. Every measurement is a process of its own, which may fail, crash or hang.

Nothing of ours is imported here: only the processes that are started have it installed.

A stage ends when its time is over, and says what it left for the next run. That run measures only what is missing and,
of what it keeps, the point measured longest ago once more: another figure for the same point shows how far to trust.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .results import Key, Results
from .tree import ROOT, fingerprint

VARIANTS = ("tiny-p16", "small-p32", "small-p16", "base-p16")
BATCHES = (1, 8, 32, 128)
QUANTISED = {"ours int8": "int8", "ours fp8": "fp8"}
PEERS = ("eager", "torch.compile", "torch.compile max-autotune")
LEAST_SECONDS = 20.0  # with less left, nothing is started
SANITIZER = {  # by tool: what it prints of a program without faults
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed",
}
ALONE = ("test_cuda_graph_gpu.py", "test_tuning.py")  # they measure free memory, or time: nothing beside them
TEST_SECONDS = 240  # for one test, after which it hangs
GIB_A_PROCESS = 8  # what one of several processes on the GPU may need


class OutOfTimeError(Exception):
    """The stage's time was over first; nothing is known about what it stopped."""


@dataclass
class Session:
    """One stage's run. seconds: for all of it. point_seconds: for one measurement, longer than which it has failed.

    again:    keep nothing, measure everything
    failures: what the exit status must tell
    left:     what there was no time for
    """

    results: Results
    environment: dict[str, str]
    log: Path
    seconds: float
    point_seconds: float
    again: bool = False
    say: Callable[[str], None] = print
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def each(self, keys: Iterable[Key], measure: Callable[[Key], Any]) -> None:
        """Calls measure(key) for every key while there is time."""
        for key in keys:
            try:
                if self.seconds_left < LEAST_SECONDS:
                    raise OutOfTimeError
                measure(key)
            except OutOfTimeError:
                self.left.append(" ".join(map(str, key)))

    def work(self, task: str, log: Path | None = None, **arguments: Any) -> dict[str, Any]:
        """The result of a task of worker.py, or {"failed": why}."""
        limit = min(self.point_seconds, self.seconds_left)
        result = work(task, arguments, self.environment, limit, log or self.log)
        if result is None and limit < self.point_seconds:
            raise OutOfTimeError
        return result or {"failed": f"stopped after {limit:.0f} s"}

    def put(self, section: str, key: Key, row: dict[str, Any], may_fail: bool = False) -> None:
        """Stores a row, prints it and, unless it may fail, notes its failure."""
        row = self.results.put(section, key, row)
        name = " ".join(map(str, key))
        self.say(f"{name}: {row.get('failed') or _brief(row)}")
        if "failed" in row and not may_fail:
            self.failures.append(f"{name}: {row['failed']}")


def _brief(row: dict[str, Any]) -> str:
    again = f" (before: {row['previous_ms']:.3f})" if "previous_ms" in row else ""
    if "ms" in row:
        return f"{row['ms']:.3f} ms{again}"
    return f"{row['sum_ms']:.3f} ms in all" if "sum_ms" in row else row.get("outcome", "")


def work(
    task: str, arguments: dict[str, Any], environment: dict[str, str], seconds: float, log: Path
) -> dict[str, Any] | None:
    """The result of a task of worker.py, {"failed": why}, or None when it took longer than this."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", f"{__package__}.worker", task, json.dumps(arguments), str(result)]
        code, output = run(command, environment, seconds, log)
        if result.exists():
            return json.loads(result.read_text(encoding="utf-8"))
    return None if code is None else {"failed": why(code, output)}


def run(command: Sequence[str], environment: dict[str, str], seconds: float, log: Path) -> tuple[int | None, str]:
    """Exit status and output of a command, which goes to the end of `log`. None: it took longer, and was killed
    together with everything it had started."""
    with log.open("ab") as out:
        start = out.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, log.read_bytes()[start:].decode(errors="replace")


def why(code: int, output: str) -> str:
    """In a line, how a process ended that did not end well."""
    lines = [line for line in output.splitlines() if line.strip()]
    died = f"died of {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"{died}: {lines[-1].strip()[:250] if lines else 'no output'}"


def ours(session: Session, variants: Sequence[str], batches: Sequence[int]) -> None:
    """Our points in 16 bits, then the table of kernels for each."""
    _own(session, {"ours": "fp16"}, variants, batches)


def quantised(session: Session, variants: Sequence[str], batches: Sequence[int]) -> None:
    """The same in the 8 bits that this GPU multiplies, beside ours in 16."""
    there = session.results.entry["ceilings"]["flops_per_second"]
    precisions = {name: precision for name, precision in QUANTISED.items() if precision in there}
    _own(session, precisions, variants, batches)


def _own(session: Session, precisions: Mapping[str, str], variants: Sequence[str], batches: Sequence[int]) -> None:
    """Kept is what was measured of the same source."""
    places = [(variant, batch) for variant in variants for batch in batches]
    source = session.results.stamp["source"]

    def fits(row: dict[str, Any]) -> bool:
        return row["source"] == source and "failed" not in row and "ours_failed" not in row and not session.again

    points = session.results.due("points", [(name, *place) for place in places for name in precisions], fits)
    tables = session.results.due(
        "kernels", [(*place, precision) for place in places for precision in precisions.values()], fits
    )
    fp16 = {(*place, "fp16") for _, *place in points if "ours" not in precisions}
    build(session, {(variant, batch, precisions[str(name)]) for name, variant, batch in points} | {*tables} | fp16)
    session.each(points, lambda key: session.put("points", key, _point(session, *key)))
    session.each(tables, lambda key: session.put("kernels", key, _kernels(session, *key)))


def peers(session: Session, variants: Sequence[str], batches: Sequence[int]) -> None:
    """Each peer at each point, beside ours. Kept is all that this machine has measured, failures too."""
    keys: list[Key] = [(peer, variant, batch) for peer in PEERS for variant in variants for batch in batches]
    due = session.results.due("points", keys, lambda row: "ours_failed" not in row and not session.again)
    build(session, {(variant, batch, "fp16") for _, variant, batch in due})
    session.each(due, lambda key: session.put("points", key, _point(session, *key), may_fail=True))


def _point(session: Session, implementation: Any, variant: Any, batch: Any) -> dict[str, Any]:
    ceilings = session.results.entry["ceilings"]
    return session.work("point", implementation=implementation, variant=variant, batch=batch, ceilings=ceilings)


def _kernels(session: Session, variant: Any, batch: Any, precision: Any) -> dict[str, Any]:
    ceilings = session.results.entry["ceilings"]
    return session.work("kernels", variant=variant, batch=batch, precision=precision, ceilings=ceilings)


def build(session: Session, keys: Collection[Key]) -> None:
    """Compiles our kernels for these variants, batches and precisions, in parallel; a failure will show where they are
    used."""
    with ThreadPoolExecutor(processes(session.results)) as pool, tempfile.TemporaryDirectory() as folder:

        def one(key: Key) -> None:
            variant, batch, precision = key
            with suppress(OutOfTimeError):
                log = Path(folder, "-".join(map(str, key)))
                session.work("build", log, variant=variant, batch=batch, precision=precision)

        list(pool.map(one, keys))


def processes(results: Results) -> int:
    """How many processes may use the GPU and the CPU at a time."""
    return max(1, min(os.cpu_count() or 1, results.entry["machine"]["memory_gib"] // GIB_A_PROCESS, 16))


def tests(session: Session) -> None:
    """The test files that run on a GPU, then compute-sanitizer on a small network; first what has not passed yet."""
    version = {"tests": fingerprint("tests"), "source": session.results.stamp["source"]}
    files = [file for file in sorted((ROOT / "tests").glob("test_*.py")) if on_gpu(file.read_text(encoding="utf-8"))]

    def passed(key: Key) -> bool:
        row = session.results.find("tests", key)
        return row is not None and "failed" not in row and version.items() <= row.items()

    def test(key: Key) -> None:
        name = str(key[0])
        tool = name.removeprefix("compute-sanitizer ")
        row = _sanitize(session, tool) if tool in SANITIZER else _pytest(session, name)
        session.put("tests", key, {**row, "tests": version["tests"]})

    keys: list[Key] = [*((file.name,) for file in files), *((f"compute-sanitizer {tool}",) for tool in SANITIZER)]
    again = [key for key in keys if passed(key)]
    session.each([key for key in keys if key not in again], test)
    session.failures += [f"{name}: not run" for name in session.left]
    session.each(again, test)


def on_gpu(source: str) -> bool:
    """Whether a test file has tests that use the GPU if there is one."""
    return bool(re.search(r"^from kernel_checks import|pytest\.mark\.gpu\b", source, re.MULTILINE))


def _pytest(session: Session, file: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-c", "tests/gpu.ini", "-p", "no:cacheprovider", f"tests/{file}"]
    if find_spec("xdist"):  # which goes on with the next test when one ends its process
        command += ["-n", "1" if file in ALONE else str(processes(session.results))]
    if find_spec("pytest_timeout"):
        command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]  # a GPU that hangs takes no signal
    code, output, seconds = _timed(session, command, {})
    lines = output.strip().splitlines()
    last = next((line for line in reversed(lines) if re.search(r"\d+ [a-z]+.* in \d+\.\d+s", line)), "")
    row: dict[str, Any] = {"outcome": last.strip("= "), "seconds": seconds}
    if code != 0 or " passed" not in last:
        session.say("\n".join(lines[-15:]))
        row["failed"] = why(code, output)
    return row


def _sanitize(session: Session, tool: str) -> dict[str, Any]:
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"outcome": "absent"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", f"{__package__}.sanitize"]
    code, output, seconds = _timed(session, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if code == 0 and SANITIZER[tool] in output:
        return {"outcome": "clean", "seconds": seconds}
    return {
        "outcome": "found" if " SUMMARY: " in output and SANITIZER[tool] not in output else "did not run",
        "seconds": seconds,
        "failed": why(code, output),
    }


def _timed(session: Session, command: Sequence[str], environment: dict[str, str]) -> tuple[int, str, float]:
    """Exit status, output and seconds of a command that may take all the time there is."""
    start = time.monotonic()
    code, output = run(command, session.environment | environment, session.seconds_left, session.log)
    if code is None:
        raise OutOfTimeError
    return code, output, time.monotonic() - start
