"""The GPU suite's steps that run test files: how each ended, and what is kept of it."""

import pytest
from pretended_session import ended

from benchmarks.gpu import pytest_runs

PASSED = [{"test": "t.py::a"}, {"test": "t.py::a", "outcome": "passed", "seconds": 1, "why": ""}]
FAILED = [{"test": "t.py::b"}, {"test": "tests/t.py::b", "outcome": "failed", "seconds": 1, "why": "assert 1 == 2"}]
SKIPPED = [{"test": "t.py::c", "outcome": "skipped", "seconds": 0, "why": ""}]


@pytest.mark.parametrize(
    ("end", "events", "outcome", "failed"),
    [
        (ended(0), PASSED + SKIPPED, "1 passed, 1 skipped", None),
        (ended(1), PASSED + FAILED, "1 passed, 1 failed", "t.py::b: assert 1 == 2"),
        (ended(0), SKIPPED, "1 skipped", "exit status 0: no output"),
        (ended(4, "ERROR: no such file"), [], "no test ended", "exit status 4: ERROR: no such file"),
        (ended(-11, "Fatal"), PASSED, "1 passed", "died of SIGSEGV: Fatal"),
    ],
)
def test_how_a_test_file_ended(end, events, outcome, failed, running):
    session = running(end, events)
    assert pytest_runs.executor(session) == outcome
    row = session.results.find("tests", ("engines/triton/test_graphs_gpu.py, quick",))
    assert (row["outcome"], row.get("failed")) == (outcome, failed)
    assert session.failures == ([f"engines/triton/test_graphs_gpu.py, quick: {failed}"] if failed else [])


def test_a_test_file_that_is_cut_leaves_what_is_known(running):
    session = running(ended(None, seconds=60.0), [*PASSED, {"test": "tests/t.py::slow"}])
    pytest_runs.executor(session)
    row = session.results.find("tests", ("engines/triton/test_graphs_gpu.py, quick",))
    assert (row["outcome"], row["cut"]) == ("1 passed", True)
    assert row["failed"] == "stopped after 60 s; running: tests/t.py::slow"
    assert session.failures == []
    session = running(ended(None), PASSED + FAILED)
    pytest_runs.executor(session)
    assert len(session.failures) == 1  # that one failed is known


def test_a_file_that_has_passed_is_kept_until_something_changes(running, monkeypatch):
    pytest_runs.executor(running(ended(0), PASSED))
    again = running(ended(0), PASSED)
    assert pytest_runs.executor(again) == "1 passed (kept)"
    assert again.commands == []
    monkeypatch.setattr(pytest_runs, "fingerprint", lambda folder: "others")
    pytest_runs.executor(again)
    assert len(again.commands) == 1


def test_every_file_runs_and_the_executors_slow_tests_alone(running):
    session = running(ended(0), PASSED)
    pytest_runs.everything(session)
    files = {word for command in session.commands for word in command if word.endswith(".py")}
    assert {
        "tests/kernels/test_linear.py",
        "tests/kernels/test_real_sizes.py",
        "tests/engines/triton/test_tuning.py",
    } <= files
    assert (
        not {
            "tests/benchmarks/gpu/test_pytest_runs.py",
            "tests/engines/openvino/test_engine.py",
            "tests/test_packaging.py",
        }
        & files
    )
    (executor,) = [command for command in session.commands if "tests/engines/triton/test_graphs_gpu.py" in command]
    assert executor[executor.index("tests/engines/triton/test_graphs_gpu.py") + 1 :][:2] == ["-m", "slow"]
    assert executor[executor.index("-n") + 1] == "1"


def test_a_test_that_hangs_ends_alone(running, monkeypatch):
    """With pytest's plugins, where they are; without them the step's time ends it."""
    for found, there in [(True, True), (None, False)]:
        monkeypatch.setattr(pytest_runs, "find_spec", lambda name, found=found: found)
        session = running(ended(1))
        pytest_runs.executor(session)
        assert ("--timeout-method" in session.commands[0]) == there == ("-n" in session.commands[0])
