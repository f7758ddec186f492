"""The steps that run test files on the GPU: `executor` and `tests`."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .session import Session
from .tree import ROOT, fingerprint

EXECUTOR = "engines/triton/test_graphs_gpu.py"
ALONE = (EXECUTOR, "engines/triton/test_tuning.py")  # they measure free memory, or time: nothing beside them
TEST_SECONDS = 240  # for one test, after which it hangs


def executor(session: Session) -> str:
    """All of its tests that take no more than seconds, many at a time: a process's own memory is what they measure."""
    return _file(session, f"{EXECUTOR}, quick", [f"tests/{EXECUTOR}", "-m", "not slow"], session.at_a_time)


def everything(session: Session) -> str:
    """Each file; of the executor's, what `executor` leaves out."""
    session.quiet()
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = [str(file.relative_to(ROOT / "tests")) for file in files if on_gpu(file.read_text("utf-8"))]
    outcomes = []
    for name in names:
        if session.seconds_left < 20:
            session.left.append(name)
            continue
        slow = ["-m", "slow"] if name == EXECUTOR else []
        processes = 1 if name in ALONE else session.at_a_time
        outcomes.append(_file(session, name, [f"tests/{name}", *slow], processes))
    failed = sum("failed" in outcome for outcome in outcomes)
    return f"{len(outcomes)} of {len(names)} files, {failed} with failures"


def on_gpu(source: str) -> bool:
    """Whether a test file has tests that use the GPU if there is one."""
    return bool(re.search(r"^from kernel_checks import|pytest\.mark\.gpu\b", source, re.MULTILINE))


def _file(session: Session, name: str, arguments: Sequence[str], processes: int) -> str:
    """Its outcome, which is stored, and what was known of it if it was cut."""
    version = {"tests": fingerprint("tests")}
    kept = session.kept_row("tests", (name,), **version)
    if kept:
        return f"{kept['outcome']} (kept)"
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder, "events")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            "tests/gpu.ini",
            "--rootdir",
            ".",
            "-p",
            "no:cacheprovider",
            *arguments,
        ]
        command += ["-p", f"{__package__}.outcomes"]
        if find_spec("xdist"):  # which goes on with the next test when one ends its process
            command += ["-n", str(processes)]
        if find_spec("pytest_timeout"):
            command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]  # a hung GPU takes no signal
        ended = session.processes.run(command, session.seconds_left, {"GPU_SUITE_OUTCOMES": str(events)})
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    row = row_of([json.loads(line) for line in lines])
    row["seconds"] = ended.seconds
    if ended.code is None:
        row |= {"failed": f"{ended.why}; running: {', '.join(row['running'][:3])}", "cut": not row["failures"]}
    elif row["failures"]:
        row["failed"] = f"{row['failures'][0]['test']}: {row['failures'][0]['why']}"
    elif ended.code != 0 or not row["passed"]:
        row["failed"] = ended.why
    session.put("tests", (name,), {**row, **version})
    return row["outcome"]


def row_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What outcomes.py wrote, as a row: the tests that failed and those that were running at the end by name."""
    running: dict[str, None] = {}
    counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
    for event in events:
        if "outcome" not in event:
            running[event["test"]] = None
            continue
        running.pop(event["test"], None)
        counts[event["outcome"]] += 1
        if event["outcome"] == "failed":
            failures.append({"test": event["test"].removeprefix("tests/"), "why": event["why"]})
    outcome = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no test ended"
    return {"outcome": outcome, "passed": counts["passed"], "failures": failures, "running": list(running)}
