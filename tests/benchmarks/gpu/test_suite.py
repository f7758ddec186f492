"""The GPU suite's steps and command line, with pretended measurements: what is kept, what is cut, what fails, what is
printed. tests/benchmarks/gpu/test_whole_suite.py runs the real ones on a pretended GPU."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_suite_samples import CEILINGS, MACHINE, PRODUCTS

import conformer_fast as cf
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import (
    checking,
    clock,
    points,
    profiling,
    pytest_runs,
    results,
    roofline,
    session,
    steps,
    tables,
    tree,
    tuning,
)
from benchmarks.gpu.processes import Ended
from benchmarks.gpu.results import Results
from benchmarks.gpu.roofline import Ceilings
from benchmarks.gpu.session import PEERS, Session

ROOT = Path(__file__).parents[3]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ONE = {"problem": "linear fp16 M197 N384 K384", "count": 12, "choice": [64, 64, 64, 4, 3], "reason": "rule"}
ONE |= {"us": 9.0, "pytorch_us": 8.0, "gbs": 900.0, "tflops": 9.0, "floor_us": 3.0, "times_floor": 3.0}
ONE |= {"bound": "memory"}
MOST_LINES = 100
SHOWN_CHARACTERS = 12_000  # that some machines return of what a command printed


class Pretended(Session):
    """A session whose tasks are noted and give figures like real ones. failing: implementations that fail; cutting:
    those that the session's time ends."""

    def __post_init__(self):
        super().__post_init__()
        self.say = lambda line: None
        self.asked, self.failing, self.cutting = [], set(), set()

    def work(self, task, seconds=session.POINT_SECONDS, **arguments):
        name = tuple(arguments[word] for word in ("implementation", "variant", "batch") if word in arguments)
        self.asked.append((task, *name))
        if name and name[0] in self.failing:
            return {"failed": "RuntimeError: no luck"}
        if name and name[0] in self.cutting:
            return {"failed": "stopped after 5 s", "cut": True}
        if task == "facts":
            return {"ceilings": CEILINGS, "products": PRODUCTS}
        if task == "kernels":
            operations = [{**ONE, "problem": f"linear fp16 M{row} N384 K384", "share": 0.1} for row in range(38)]
            return {"sum_ms": 0.9, "operations": operations}
        median = {"ours int8": 3e-3, "ours fp8": 4e-3}.get(name[0], 1e-3)
        times = clock.Times(median=median, low=9e-4, high=2e-3, calls=300, speedup=1.0)
        row = points.figures(times, "digits", name[2], steps.QUANTIZED.get(name[0], "fp16"), Ceilings(**CEILINGS))
        row |= {"how": "", "error": 1e-3, "peak_bytes": 1, "build_seconds": 2.0}
        return row | ({} if name[0] == "ours" else {"ours_ms": 0.5, "ours_speedup": 2.0})

    def together(self, task, arguments, most, seconds=0):
        self.asked += [(task, given["variant"], given["batch"]) for given in arguments]
        return []

    def measured(self):
        measured = [asked for asked in self.asked if asked[0] != "build"]
        self.asked = []
        return measured


@pytest.fixture
def start(tmp_path):
    """A session on one result file, of some source."""

    def start(source="s1", seconds=1000.0, variants=("tiny-p16",), batches=(1,), ceilings=CEILINGS):
        store = Results(tmp_path / "gpu.json", MACHINE, {"commit": "abc", "source": source})
        if ceilings:
            store.entry |= {"ceilings": ceilings, "products": PRODUCTS}
        end = time.monotonic() + seconds
        processes = SimpleNamespace(end=lambda but: None)
        return Pretended(store, processes, tmp_path, tmp_path, end, variants, batches)

    return start


# What is kept, cut and failed


def test_ours_is_measured_again_when_the_code_changes(start):
    both = [("point", "ours", "tiny-p16", 1), ("point", "ours", "tiny-p16", 8)]
    tables_of_both = [("kernels", "tiny-p16", 1), ("kernels", "tiny-p16", 8)]
    first = start(batches=(1, 8))
    steps.ours(first)
    assert [asked for asked in first.asked if asked[0] == "build"] == [
        ("build", "tiny-p16", 1),
        ("build", "tiny-p16", 8),
    ]
    assert first.measured() == both + tables_of_both
    second = start(batches=(1, 8))
    steps.ours(second)
    assert second.asked == [both[0], tables_of_both[0]]  # the oldest once more
    changed = start("s2", batches=(1, 8))
    steps.ours(changed)
    assert changed.measured() == both + tables_of_both


def test_peers_are_kept_and_one_measured_again(start):
    first = start()
    first.failing = {"torch.compile"}
    steps.peers(first)
    assert [asked[1] for asked in first.measured()] == ["eager", "torch.compile"]
    assert first.failures == []  # of a peer it is a result
    second = start("s2")
    steps.peers(second)
    assert second.measured() == [("point", "eager", "tiny-p16", 1)]
    steps.autotune(third := start("s2"))
    assert third.measured() == [("point", "torch.compile max-autotune", "tiny-p16", 1)]


def test_a_peer_that_took_too_long_is_tried_again(start):
    key = ("eager", "tiny-p16", 1)
    for failure, missing in [({"stopped": True}, [key]), ({}, [])]:
        session = start()
        session.results.put("points", key, {"failed": "no figure", **failure})
        assert session.missing("points", [key]) == missing


def test_headline_is_small_at_128_and_1_then_what_is_beside_it(start):
    session = start()
    steps.headline(session)
    places = [("small-p16", 128), ("small-p16", 1)]
    own = [(task, *name, *place) for place in places for task, name in (("point", ("ours",)), ("kernels", ()))]
    peers = [("point", peer, *place) for peer in ("torch.compile", "eager") for place in places]
    assert session.asked == [*own, *peers, ("point", "ours", "base-p16", 128)]
    steps.headline(again := start("s2"))
    assert again.asked == [*own, ("point", "ours", "base-p16", 128)]


def test_8_bits_are_measured_where_there_are_such_products(start):
    steps.quantized(session := start())
    measured = [asked[1:] for asked in session.asked if asked[0] == "point"]
    assert measured == [("ours int8", "tiny-p16", 1), ("ours fp8", "tiny-p16", 1)]
    assert {row["precision"] for row in session.results.entry["kernels"]} == {"int8", "fp8"}
    (line,) = [
        line for line in tables.everything(session.results.entry, "s1").splitlines() if line.startswith("tiny-p16 B1 ")
    ]
    assert line.split()[-2:] == ["3.000", "4.000"]
    ampere = start("s2", ceilings={**CEILINGS, "flops_per_second": {"fp16": 270e12, "int8": 540e12}})
    steps.quantized(ampere)
    assert [asked[1:] for asked in ampere.asked if asked[0] == "point"] == [("ours int8", "tiny-p16", 1)]


def test_our_failure_is_a_failure(start):
    session = start()
    session.failing = {"ours"}
    steps.ours(session)
    assert session.failures == ["ours tiny-p16 1: RuntimeError: no luck"]
    steps.ours(again := start())
    assert ("point", "ours", "tiny-p16", 1) in again.asked  # not kept


def test_what_the_time_cuts_is_left_and_unknown(start):
    session = start()
    session.cutting = {"eager", "ours"}
    steps.peers(session)
    steps.ours(session)
    assert session.failures == []
    assert session.left == ["eager tiny-p16 1", "ours tiny-p16 1"]
    steps.peers(again := start())
    assert again.measured()[0] == ("point", "eager", "tiny-p16", 1)  # nothing is known of it yet


def test_what_there_is_no_time_for_is_left(start):
    session = start(seconds=0, batches=(1, 8))
    steps.peers(session)
    assert session.measured() == []
    assert session.left[0] == "eager tiny-p16 1"
    assert len(session.left) == 4


def test_floors_that_were_assumed_are_computed_again(start):
    steps.ours(session := start(ceilings=None))
    assert session.results.find("points", ("ours", "tiny-p16", 1))["ceilings"] == "assumed"
    assert "floors are by an H100's, assumed" in tables.everything(session.results.entry, "s1")
    steps.ours(again := start())
    assert len(again.measured()) == 2
    assert "ceilings" not in again.results.find("points", ("ours", "tiny-p16", 1))


def test_a_step_leaves_a_row_however_it_ends(start):
    session = start()
    seen = []

    def look(session):
        seen.append(dict(session.results.find("steps", ("good",))))
        session.failures.append("one")
        return "done"

    session.step("good", 100, look)
    assert seen[0]["failed"] == "the suite was killed while this ran"  # what would stand there if it were
    row = session.results.find("steps", ("good",))
    assert (row["outcome"], row["failures"], "failed" in row) == ("done", 1, False)
    session.step("bad", 100, lambda session: 1 / 0)
    assert session.results.find("steps", ("bad",))["failed"] == "ZeroDivisionError: division by zero"
    with pytest.raises(SystemExit):
        session.step("ended", 100, lambda session: sys.exit(143))
    assert session.results.find("steps", ("ended",))["failed"] == "the suite was ended while this ran"
    session.end = time.monotonic()
    session.step("late", 100, look)
    assert session.results.find("steps", ("late",))["outcome"] == "no time left"
    assert session.left == ["late"]


# check, with pretended processes


class Shard:
    """A process of `check` that goes through `writes`, then ends with `failed`, if given. With no end it hangs."""

    def __init__(self, writes, failed=None, hangs=False):
        self.writes, self.failed, self.hangs = list(writes), failed, hangs
        self.process = SimpleNamespace(running=True)

    def so_far(self):
        value = self.writes[0]
        if len(self.writes) > 1:
            self.writes.pop(0)
        elif not self.hangs:
            self.process.running = False
        return value

    def wait(self, seconds):
        self.process.running = False
        value = self.writes[-1]
        failed = "stopped after 45 s" if self.hangs else self.failed
        return value | {"failed": failed} if failed else value


def row(problem, **more):
    return {"variant": "tiny-p16", "batch": 1, "problem": problem, "error": 1e-4, "bound": 1e-3, **more}


def now(problem):
    return {"variant": "tiny-p16", "batch": 1, "problem": problem}


@pytest.fixture
def check(start, monkeypatch):
    monkeypatch.setattr(checking, "LOOK_SECONDS", 0)
    monkeypatch.setattr(checking, "OPERATION_SECONDS", 0.05)
    monkeypatch.setattr(Pretended, "at_a_time", 1)

    def check(*shards, **options):
        session, started = start(**options), []
        session.shards = iter(shards)

        def begin(task, nice=False, **arguments):
            started.append(arguments["done"])
            return next(session.shards)

        session.start = begin
        return session, checking.check(session), started

    return check


def test_each_checked_operation_is_a_row(check):
    session, outcome, started = check(
        Shard(
            [{}, {"rows": [], "now": now("a")}, {"rows": [row("a")], "now": now("b")}, {"rows": [row("a"), row("b")]}]
        )
    )
    assert outcome == "2 operations, 0 failed, 0 of them kept"
    assert [one["problem"] for one in session.results.entry["checks"]] == ["a", "b"]
    assert started == [[]]
    _, outcome, started = check(Shard([{"rows": [row("c")]}]))
    assert started == [["a", "b"]]
    assert outcome == "3 operations, 0 failed, 2 of them kept"
    _, _, started = check(Shard([{"rows": []}]), source="s2")
    assert started == [[]]  # of other code


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (Shard([{"rows": [row("a")], "now": now("b")}], failed="died of SIGSEGV: oh"), "died of SIGSEGV: oh"),
        (Shard([{"rows": [row("a")], "now": now("b")}], hangs=True), "stopped after 45 s"),
        (Shard([{"rows": [row("a"), row("b", failed="illegal address")], "broken": True}]), "illegal address"),
        (
            Shard(
                [{"rows": [row("a"), row("b", failed="illegal address")], "broken": True}], failed="died of SIGABRT: x"
            ),
            "illegal address",
        ),
    ],
    ids=["crash", "hang", "broken GPU", "broken GPU that crashes at its end"],
)
def test_what_one_operation_does_costs_that_one(first, why, check):
    session, outcome, started = check(first, Shard([{"rows": [row("c")]}]))
    assert started == [[], ["a", "b"]]
    assert outcome == "3 operations, 1 failed, 0 of them kept"
    assert session.results.find("checks", ("b",))["failed"] == why
    assert session.failures == [f"check of b: {why}"]
    printed = tables.everything(session.results.entry, "s1")
    assert "checks: 2 of 3 operations are within their bounds; nearest: 0.10 of it, a" in printed
    assert f"  b: {why}" in printed


def test_a_process_that_does_not_begin_is_not_started_again(check):
    session, outcome, started = check(Shard([{}], failed="exit status 1: no torch"))
    assert (outcome, started) == ("0 operations, 0 failed, 0 of them kept", [[]])
    assert session.failures == ["check 0: exit status 1: no torch"]


def test_a_process_may_take_long_to_begin(check):
    """A machine that has just started reads PyTorch from its disk."""
    session, outcome, _ = check(Shard([{}] * 2000 + [{"rows": [row("a")]}]))
    assert (outcome, session.failures) == ("1 operations, 0 failed, 0 of them kept", [])


def test_check_is_cut_by_the_time(check):
    session, outcome, _ = check(Shard([{"rows": [row("a")], "now": now("b")}]), seconds=0)
    assert outcome == "1 operations, 0 failed, 0 of them kept, cut short"
    assert session.left == ["some operations of check"]


# Test files and NVIDIA's tools


def ended(code, output="", seconds=5.0):
    return Ended(code, output, seconds)


@pytest.fixture
def running(start):
    """A session whose commands end like this, with what pytest's plugin wrote."""

    def running(end, events=()):
        session = start()
        session.commands = []

        def run(command, seconds, environment=None):
            session.commands.append(command)
            if environment and "GPU_SUITE_OUTCOMES" in environment:
                lines = "".join(json.dumps(event) + "\n" for event in events)
                Path(environment["GPU_SUITE_OUTCOMES"]).write_text(lines)
            return end

        session.processes = SimpleNamespace(run=run, end=lambda but: None)
        return session

    return running


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
        not {"tests/benchmarks/gpu/test_suite.py", "tests/engines/openvino/test_engine.py", "tests/test_packaging.py"}
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


def test_what_is_known_once_is_not_measured_again(start):
    session = start()
    assert steps.ceilings(session) == "kept"
    assert session.asked == []
    without = start(ceilings=None)
    without.results.entry.pop("ceilings", None)
    assert steps.ceilings(without) == "3.00 TB/s"
    assert without.asked == [("facts",)]


def test_compiling_that_hangs_costs_its_own_time(start):
    session = start()
    jobs = [Shard([{}], hangs=True) for _ in range(3)]
    begun = iter(jobs)
    session.start = lambda task, **arguments: next(begun)
    assert len(Session.together(session, "build", [{}] * 3, most=2, seconds=0.1)) == 2
    assert [job.process.running for job in jobs] == [False, False, True]  # the third was not begun


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


# tune


def test_what_loses_most_is_tuned_and_what_pytorch_runs_faster():
    operations = [
        {**ONE, "problem": f"p{index}", "us": 3.0 + index, "pytorch_us": 100.0, "count": 1} for index in range(40)
    ]
    operations[0] |= {"pytorch_us": 1.0}
    operations[1] |= {"pytorch_us": 1.0, "choice": "pytorch"}  # it is PyTorch's already
    table = {"variant": "tiny-p16", "batch": 8, "precision": "fp16", "operations": operations}
    twice = {**table, "batch": 1, "operations": [{**operations[39], "us": 1e3}]}
    places = tuning.losing([table, twice, {"variant": "small-p16", "batch": 1, "precision": "fp16", "failed": "no"}])
    assert places[0] == ["tiny-p16", 1, "fp16", "p39"]  # where it loses most
    assert [place[3] for place in places[1:]] == [*(f"p{index}" for index in range(38, 15, -1)), "p0"]


def test_nothing_is_tuned_without_a_table(start):
    assert tuning.tune(start()) == "there is no table of kernels to tune by: headline or ours makes one"


# What is printed


def test_every_stored_field_is_described(start):
    session = start()
    session.failing, session.cutting = {"torch.compile"}, {"ours fp8"}
    for step in (steps.ours, steps.peers, steps.peers, steps.quantized):
        step(session)
    described = set(", ".join(results.ABOUT).split(", "))
    plain = {"implementation", "variant", "batch", "date", "how", "calls", "images_per_second", "tflops", "gbs"}
    plain |= {"sum_ms", "operations", "problem", "count", "reason", "share"}
    rows = [*session.results.entry["points"], *session.results.entry["kernels"]]
    rows += session.results.entry["kernels"][0]["operations"]
    assert {name for row in rows for name in row} <= described | plain


@pytest.fixture
def full(start):
    """A session that has everything, and failures of every kind."""
    session = start(variants=steps.VARIANTS, batches=steps.BATCHES)
    for name in ("ceilings", "headline", "ours", "peers", "quantized", "autotune"):
        session.step(name, 100, steps.STEPS[name].run)
    for index in range(20):
        key = (f"test_kernel_{index}.py",)
        session.put("tests", key, {"outcome": "1 failed", "failed": "assert " + "x" * 300})
        session.put("checks", (f"problem {index}",), {"failed": "y" * 300})
    metrics = {"Duration": "123.4 us", "DRAM Throughput": "81.2 %"}
    for index in range(8):
        session.put("counters", (f"linear {index}", "linear_kernel"), {"metrics": metrics})
    session.left += [f"something {index}" for index in range(50)]
    return session


def test_the_last_lines_hold_the_whole_result(full):
    printed = tables.summary(full.results.entry, "s1", full.failures, full.left)
    lines = printed.splitlines()
    assert len(lines) <= MOST_LINES
    assert len(printed) < SHOWN_CHARACTERS
    (line,) = [line for line in lines if line.startswith("small-p16 B32")]
    floors = roofline.floors("digits", 32, "fp16", Ceilings(**CEILINGS))
    shares = [f"{floor / 1e-3:.0%}" for floor in (floors.floor, floors.fused)]
    assert line.split()[2:] == [*["1.000"] * 4, *["2.00"] * 3, "32000", *shares, "1e-03", "3.000", "4.000"]
    for beginning in ("NVIDIA Test", "ceilings: 3.00 TB/s", "headline ", "checks: 0 of 20", "FAILED test_kernel_0.py"):
        assert any(line.startswith(beginning) for line in lines), beginning
    for beginning in ("  and 17 more in gpu.json", "linear 7: Duration 123.4 us, DRAM", "left: something 0"):
        assert any(line.startswith(beginning) for line in lines), beginning
    kernels = [line for line in lines if line.startswith("linear fp16")]
    assert 3 <= len(kernels) < 3 * 38
    assert kernels[0].split()[6:10] == ["9.0", "8.0<", "3.0", "0.072"]  # PyTorch's is faster
    assert len(tables.everything(full.results.entry, "s1").splitlines()) > 16 * 38


def test_a_speedup_over_another_version_of_ours_is_marked(start):
    steps.ours(start())
    steps.peers(start("s2"))
    (line,) = [line for line in tables.points_table(start().results.entry) if line.startswith("tiny-p16 B1 ")]
    assert line.count("2.00*") == 2


def test_what_is_printed_is_of_this_source_and_this_run(start):
    first = start()
    first.step("check", 100, lambda session: "done")
    for problem in ("a", "b"):
        first.results.put("checks", (problem,), {"error": 1e-4, "bound": None})
    second = start("s2")
    second.results.put("checks", ("a",), {"error": 1e-4, "bound": 1e-3})
    printed = tables.summary(second.results.entry, "s2", [], [])
    assert "checks: 1 of 1 operations" in printed
    assert "check  " not in printed
    assert "milliseconds" not in printed  # there are no points


def test_an_empty_result_can_be_printed(start):
    assert tables.summary(start(ceilings=None).results.entry, "s1", [], []).startswith("NVIDIA Test, driver 1")


# The command line, the tree


def test_installed_folders_are_those_of_setup(monkeypatch):
    asked = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **options: asked.update(options))
    runpy.run_path("setup.py", run_name="__main__")
    assert {name.replace(".", "/"): folder for name, folder in asked["package_dir"].items()} == {
        target: source for source, target in tree.FOLDERS.items()
    }


def test_source_is_what_is_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "x.py").write_text("1")
    first = tree.fingerprint("a")
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("1")
    (tmp_path / "a" / "_C.cpython-311-x86_64-linux-gnu.so").write_text("1")
    assert tree.fingerprint("a") == first
    (tmp_path / "a" / "x.py").write_text("2")
    assert tree.fingerprint("a") != first
    monkeypatch.setenv("COMMIT", "from outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tree.commit() == "from outside"


def test_the_suite_starts_where_nothing_of_ours_is_installed():
    code = "import sys; sys.modules['conformer_fast'] = None; import benchmarks.gpu.__main__"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_without_a_gpu_it_says_so(tmp_path):
    options = ["STEPS=ours peers", "BATCH=1 8", "SECONDS=60", "RESUME=old.json"]
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'out'}", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks.gpu ours peers --out" in done.stdout
    assert "--batch 1 8" in done.stdout
    assert "--seconds 60 --resume old.json" in done.stdout
    assert "the GPU suite cannot run here: PyTorch" in done.stderr
    assert "sees no CUDA device" in done.stderr
    assert "Error 2" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("found", "reason"), [("2.10.1", "torch is 2.10.1, it needs 2.11"), (None, "is not installed")]
)
def test_old_versions_are_named(monkeypatch, found, reason):
    def version(package):
        if found is None:
            raise suite.PackageNotFoundError
        return found

    monkeypatch.setattr(suite, "version", version)
    assert reason in suite.unusable()


def test_command_line(capsys):
    options = suite.parser().parse_args([])
    assert (options.steps, options.seconds) == ([], 530)
    assert options.variants == steps.VARIANTS == tuple(cf.VARIANTS)
    assert steps.WHOLE[:4] == ["check", "executor", "ceilings", "headline"]
    assert steps.WHOLE[-1] == "autotune"
    assert PEERS[-1] == steps.AUTOTUNE
    options = suite.parser().parse_args(["ours", "peers", "--variants", "tiny-p16", "--batch", "1", "8"])
    assert (options.steps, options.variants, options.batch) == (["ours", "peers"], ["tiny-p16"], [1, 8])
    with pytest.raises(SystemExit):
        suite.parser().parse_args(["speed"])
    assert "'speed' is no step; there are check, executor" in capsys.readouterr().err
