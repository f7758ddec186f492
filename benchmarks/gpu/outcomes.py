"""A pytest plugin that writes which test begins and how it ends, a line of JSON each, to $GPU_SUITE_OUTCOMES.

A run that is killed leaves what was known, and which tests were running.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist, the process that hears of all tests
        config.pluginmanager.register(Outcomes(os.environ["GPU_SUITE_OUTCOMES"]))


class Outcomes:
    def __init__(self, path: str) -> None:
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a fixture's success is not news
            text = report.longreprtext.strip() if report.outcome == "failed" else ""
            lines = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
            why = lines[0] if lines else text.rpartition("\n")[2]
            self._write(test=report.nodeid, outcome=report.outcome, seconds=report.duration, why=why[:300])

    def _write(self, **event: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
