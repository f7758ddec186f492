"""What was tried, counted and kept; and how hypothesis tries.

With an EFFORT of 1 the examples are the same every time; above, they are others each time, and a failure prints the
line that repeats it. HOSTILE_RESULTS names the file that the counts are written into: `make hostile`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attempts import Attempts, memory_within
from effort import EFFORT
from hypothesis import HealthCheck, settings

from conformer_fast.engines.openvino.device import describe

settings.register_profile(
    "hostile",
    deadline=None,  # pytest-timeout ends what hangs
    derandomize=EFFORT == 1,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("hostile")
Tried = Callable[[str, Mapping[str, int]], None]
MEGABYTES = 300  # more than before, that the attempts of one test may take


@pytest.fixture
def tried(record_property) -> Tried:
    """`tried("pictures: bytes flipped", {"refused": 90, "read": 10})` is a row of docs/reliability.md."""

    def tried(what: str, counts: Mapping[str, int]) -> None:
        record_property("tried", (what, dict(counts)))

    return tried


@pytest.fixture
def attempt(tmp_path, capfd, request) -> Iterator[Attempts]:
    """For damaged files. The test fails if it takes much memory, or if a library prints something. A parameter says how
    many megabytes it may take instead."""
    with memory_within(getattr(request, "param", MEGABYTES)):
        yield Attempts(tmp_path)
    assert capfd.readouterr() == ("", "")


def pytest_terminal_summary(terminalreporter):
    if hasattr(terminalreporter.config, "workerinput"):
        return  # xdist's main process knows all
    reports = terminalreporter.getreports("passed")
    rows = [
        {"what": what, "counts": counts, "seconds": round(report.duration, 1)}
        for report in reports
        for name, value in report.user_properties
        if name == "tried" and report.when == "call"
        for what, counts in [value]
    ]
    if rows:
        terminalreporter.section("tried")
        for row in rows:
            counts = ", ".join(f"{name} {count}" for name, count in row["counts"].items())
            terminalreporter.write_line(f"{row['what']}: {counts}")
    if path := os.environ.get("HOSTILE_RESULTS"):
        _write(Path(path), rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Beside what other tests have tried as often on this machine, in another run."""
    machine = {"cpu": describe()["device"], "cores": os.cpu_count(), "effort": EFFORT}
    before = json.loads(path.read_bytes()) if path.exists() else {}
    if machine.items() <= before.items():
        now = {row["what"] for row in rows}
        rows = rows + [row for row in before["rows"] if row["what"] not in now]
    result = machine | {"rows": sorted(rows, key=lambda row: row["what"])}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
