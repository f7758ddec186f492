"""The steps that run kernels under NVIDIA's tools: `ncu`, `memcheck` and `racecheck`."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .session import Session

HEAVIEST = 4  # operations that are profiled
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis")
CLEAN = {  # by tool: what it prints of a program without faults
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed",
}
# Errors that CUDA returns are PyTorch's to handle; Hopper's asynchronous products look like hazards of a lower level.
OPTIONS = {"memcheck": ["--report-api-errors", "no"], "racecheck": ["--racecheck-detect-level", "error"]}


def ncu(session: Session) -> str:
    """The operations that take most of the table of kernels which takes most. At the clocks as they are: nobody's
    machine is changed. The whole report lies beside the results."""
    program = _found("ncu")
    tables = [row for row in session.results.entry["kernels"] if row["precision"] == "fp16" and "failed" not in row]
    if program is None or not tables:
        return "ncu is not installed" if tables else "there is no table of kernels yet"
    table = max(tables, key=lambda row: row["sum_ms"])
    heaviest = sorted(table["operations"], key=lambda one: -one["count"] * one["us"])[:HEAVIEST]
    place = {name: table[name] for name in ("variant", "batch", "precision")}
    arguments = {**place, "problems": [one["problem"] for one in heaviest]}
    report = session.results.path.with_name("ncu.csv")
    report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [program, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "details"]
        command += [word for section in SECTIONS for word in ("--section", section)]
        command += ["--log-file", str(report.absolute()), sys.executable, "-m", f"{__package__}.worker", "counters"]
        command += [json.dumps(arguments), str(result)]
        ended = session.processes.run(command, session.seconds_left)
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        launched = json.loads(result.read_text()).get("kernels", []) if result.exists() else []
    profiles = profiles_of(lines)
    for problem, kernel in launched:
        index = next((index for index, (name, _) in enumerate(profiles) if name == kernel), None)
        if index is not None:
            metrics = profiles.pop(index)[1]
            session.put("counters", (problem, kernel), {**place, "metrics": metrics, "outcome": "profiled"})
    found = [row for row in session.results.entry["counters"] if [row["problem"], row["kernel"]] in launched]
    if ended.code == 0 and launched and len(found) == len(launched):
        return f"{len(found)} kernels"
    said = next((line for line in lines if line.startswith(("==ERROR==", "==WARNING=="))), ended.why)
    why = said if ended.code != 0 else f"{len(found)} of {len(launched)} kernels of ours are in {report.name}"
    session.failures.append(f"ncu: {why}")
    return why


def profiles_of(lines: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """(kernel, metrics with their units) of each launch in ncu's page `details` as CSV, in order."""
    table = csv.DictReader(line for line in lines if line.startswith('"'))  # not ncu's own messages
    launches: dict[str, tuple[str, dict[str, str]]] = {}
    for row in table:
        _, metrics = launches.setdefault(row["ID"], (row["Kernel Name"], {}))
        if row.get("Metric Name"):  # else it is a rule's advice
            metrics[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def memcheck(session: Session) -> str:
    return _sanitized(session, "memcheck")


def racecheck(session: Session) -> str:
    """Its hazards are stored and no failure: some are known to be none on Hopper. What does not run is one."""
    return _sanitized(session, "racecheck")


def _sanitized(session: Session, tool: str) -> str:
    key = (f"compute-sanitizer {tool}",)
    kept = session.kept_row("tests", key)
    if kept:
        return f"{kept['outcome']} (kept)"
    program = _found("compute-sanitizer")
    if program is None:
        return "compute-sanitizer is not installed"
    command = [program, "--tool", tool, *OPTIONS[tool], "--error-exitcode", "9"]
    with tempfile.TemporaryDirectory() as folder:
        command += [sys.executable, "-m", f"{__package__}.worker", "sanitize", "{}", str(Path(folder, "result.json"))]
        ended = session.processes.run(command, session.seconds_left, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    row: dict[str, Any] = {"outcome": "clean", "seconds": ended.seconds}
    if ended.code is None:
        row |= {"outcome": "cut short", "failed": ended.why, "cut": True}
    elif ended.code != 0 or CLEAN[tool] not in ended.output:
        found = " SUMMARY: " in ended.output and CLEAN[tool] not in ended.output
        lines = [line for line in ended.output.splitlines() if line.startswith("=========")]
        row |= {"outcome": "found" if found else "did not run", "report": lines[:40]}
        if tool == "memcheck" or not found:
            row["failed"] = ended.why
    session.put("tests", key, row)
    return str(row["outcome"])


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")
