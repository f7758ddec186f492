"""NVIDIA's tools in the GPU suite: what the sanitizer and the profiler found."""

import json
from pathlib import Path

import pytest
from pretended_session import ended

from benchmarks.gpu import profiling, steps


@pytest.mark.parametrize(
    ("tool", "end", "outcome", "failed"),
    [
        ("memcheck", ended(0, "every kernel ran\n========= ERROR SUMMARY: 0 errors"), "clean", False),
        ("memcheck", ended(9, "========= ERROR SUMMARY: 2 errors"), "found", True),
        (
            "racecheck",
            ended(0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
            "clean",
            False,
        ),
        ("racecheck", ended(0, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error)"), "found", False),
        ("racecheck", ended(1, "no such device"), "did not run", True),
        ("memcheck", ended(1, "AssertionError: no kernel ran\n========= ERROR SUMMARY: 0 errors"), "did not run", True),
        ("memcheck", ended(None), "cut short", False),
    ],
)
def test_what_the_sanitizer_found(tool, end, outcome, failed, running, monkeypatch):
    """Hazards are a lead, not a failure: some are known to be none."""
    monkeypatch.setattr(profiling.shutil, "which", lambda *_, **__: "compute-sanitizer")
    session = running(end)
    assert getattr(profiling, tool)(session) == outcome
    assert bool(session.failures) == failed
    assert session.commands[0][:3] == ["compute-sanitizer", "--tool", tool]
    assert ("--racecheck-detect-level" in session.commands[0]) == (tool == "racecheck")


def test_tools_that_are_not_there(running, monkeypatch):
    monkeypatch.setattr(profiling.shutil, "which", lambda *_, **__: None)
    session = running(ended(0))
    assert profiling.memcheck(session) == "compute-sanitizer is not installed"
    assert profiling.ncu(session) == "there is no table of kernels yet"
    steps.ours(session)
    assert profiling.ncu(session) == "ncu is not installed"
    assert session.failures == []


def test_profiles_are_read():
    lines = [
        "==PROF== Connected to process 7",
        '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"',
        '"0","linear_kernel","GPU Speed Of Light Throughput","Duration","us","1,234.50"',
        '"0","linear_kernel","GPU Speed Of Light Throughput","","",""',
        '"1","conv3x3_kernel","Occupancy","Achieved Occupancy","%","24.9"',
    ]
    assert profiling.profiles_of(lines) == [
        ("linear_kernel", {"Duration": "1,234.50 us"}),
        ("conv3x3_kernel", {"Achieved Occupancy": "24.9 %"}),
    ]
    assert profiling.profiles_of(["==ERROR== no GPU"]) == []


LAUNCHED = {"kernels": [["linear 0", "linear_kernel"], ["linear 1", "linear_kernel"]]}


@pytest.mark.parametrize(
    ("code", "lines", "outcome", "stored"),
    [
        (0, ["linear_kernel", "elementwise_kernel", "linear_kernel"], "2 kernels", 2),
        (0, ["linear_kernel", "renamed_kernel"], "1 of 2 kernels of ours are in ncu.csv", 1),
        (1, "==ERROR== ERR_NVGPUCTRPERM", "==ERROR== ERR_NVGPUCTRPERM", 0),
    ],
)
def test_what_the_profiler_found(code, lines, outcome, stored, running, monkeypatch):
    monkeypatch.setattr(profiling.shutil, "which", lambda *_, **__: "ncu")
    session = running(ended(code))
    steps.ours(session)

    def run(command, seconds, environment=None):
        head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        rows = [f'"{index}","{name}","Duration","us","1.5"' for index, name in enumerate(lines)]
        report = lines if isinstance(lines, str) else head + "\n".join(rows)
        Path(command[command.index("--log-file") + 1]).write_text(report)
        Path(command[-1]).write_text(json.dumps(LAUNCHED))
        return ended(code)

    session.processes.run = run
    assert profiling.ncu(session) == outcome
    assert len(session.results.entry["counters"]) == stored
    assert bool(session.failures) == (stored < 2)
    assert session.results.path.with_name("ncu.csv").exists()
