"""The GPU suite as it runs on a GPU, executed without one: on the stand-in, each task up to the launch of a kernel."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from on_stand_in import ROOT, STAND_IN, on_stand_in

from benchmarks.gpu import steps
from benchmarks.gpu.__main__ import main

pytestmark = pytest.mark.slow
TABLE = "NVIDIA-Stand-In.json"
NAMES = [*(name for name in steps.WHOLE if name not in ("ours", "peers", "tests")), "tune"]


def suite(out, *names, cwd=ROOT):
    options = ("--out", out, "--variants", "small-p16", "--batch", "2", "--seconds", "500")
    return on_stand_in("-m", "benchmarks.gpu", *names, *options, cwd=cwd)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of all but what is more of the same, and `tests`, whose files run above: status, output and folder. In a
    copy of the tree: `tune` writes there what ships."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("first")
    for folder in ("benchmarks", "conformer_fast", "engines", "kernels", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so"))
    return *suite(out, *NAMES, cwd=tree), out, tree


def entry_of(out):
    (entry,) = json.loads((out / "gpu.json").read_text())["machines"]
    return entry


@pytest.mark.timeout(600)
def test_the_whole_suite_runs(first):
    code, output, out, _ = first
    assert code == 0, output[-6000:]
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.txt", "gpu.log", "ncu.csv", TABLE}
    entry = entry_of(out)
    assert [row["name"] for row in entry["steps"]] == ["machine", *NAMES]
    for section in ("steps", "checks", "points", "kernels", "counters", "tests"):
        assert entry[section]
        assert not [row for row in entry[section] if "failed" in row or "ours_failed" in row]
    assert {row["variant"] for row in entry["checks"]} == {"small-p16", "base-p16", "small-p32"}
    points = {(row["implementation"], row["variant"], row["batch"]) for row in entry["points"]}
    assert {("ours", "small-p16", 2), ("torch.compile", "small-p16", 2), ("ours", "base-p16", 2)} <= points
    assert {(name, "small-p16", 2) for name in ("ours int8", "ours fp8", "eager", steps.AUTOTUNE)} <= points
    assert len({row["problem"] for row in entry["counters"]}) == 4
    assert entry["tests"][0]["passed"] > 20
    summary = output[output.rindex("\nNVIDIA Stand-In") + 1 :].splitlines()
    assert len(summary) <= 100
    assert "compiled after" in output  # torch.compile, in the background


def test_what_was_tuned_is_measured_again(first):
    *_, out, tree = first
    (table,) = (tree / "kernels" / "tuned").iterdir()
    assert table.name == TABLE
    assert table.read_bytes() == (out / TABLE).read_bytes()
    assert len(json.loads(table.read_text())["choices"]) >= 4
    entry = entry_of(out)
    (row,) = [
        row
        for row in entry["points"]
        if (row["implementation"], row["variant"], row["batch"]) == ("ours", "small-p16", 2)
    ]
    assert "previous_ms" in row
    place = ("small-p16", 2, "fp16")
    (tables,) = [row for row in entry["kernels"] if (row["variant"], row["batch"], row["precision"]) == place]
    reasons = [operation["reason"] for operation in tables["operations"]]
    assert reasons.count("measured fastest on NVIDIA Stand-In") >= 1


def test_a_second_run_keeps_what_was_checked(first, tmp_path):
    """Of the same source, which the checkout has and the tuned tree has no more."""
    *_, earlier, _ = first
    command = ("-m", "benchmarks.gpu", "check", "--out", tmp_path, "--resume", earlier / "gpu.json")
    code, output = on_stand_in(*command)
    assert code == 0, output[-6000:]
    assert re.search(r"check: (\d+) operations, 0 failed, \1 of them kept", output)


def test_a_second_run_goes_on(first, tmp_path):
    *_, earlier, tree = first
    command = ("-m", "benchmarks.gpu", "ceilings", "headline", "--out", tmp_path, "--resume", earlier / "gpu.json")
    code, output = on_stand_in(*command, cwd=tree)
    assert code == 0, output[-6000:]
    assert f"resumes {earlier / 'gpu.json'}: this machine" in output
    kept = entry_of(tmp_path)
    assert kept["points"] == entry_of(earlier)["points"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "cut short"), (signal.SIGTERM, "operations are within their bounds")],
)
def test_a_suite_that_is_ended_says_what_it_knows(number, said, tmp_path):
    """By SIGINT when its first step begins, by SIGTERM when that knows something. Meanwhile one that would write into
    the same folder is refused."""
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", tmp_path]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if number == signal.SIGINT:
        assert any(line.startswith("check: ") for line in running.stdout)  # reads up to there
    else:
        while not (tmp_path / "gpu.log").exists():
            time.sleep(0.01)
        code, output = suite(tmp_path, "check")
        assert (code, output) == (2, f"another run writes into {tmp_path}; give OUT another folder, or wait\n")
        while not (tmp_path / "gpu.json").exists() or not entry_of(tmp_path)["checks"]:
            assert running.poll() is None
            time.sleep(0.01)
    running.send_signal(number)
    running.send_signal(number)  # impatience changes nothing
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert said in output.rpartition("NVIDIA Stand-In")[2], output
    failed = [row["failed"] for row in entry_of(tmp_path)["steps"] if "failed" in row]
    assert failed == ["the suite was ended while this ran"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume", "missing.json"), "missing.json is not there, so nothing can be resumed"),
        (("--resume", "setup.py"), "setup.py is not a result file of this suite; move it away"),
        (("--out", "setup.py"), "cannot write into setup.py"),
        (("--seconds", "0"), "'0' is no whole number from 1 on"),
        (("--batch", "0"), "'0' is no whole number from 1 on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_at_once(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.gpu.__main__.unusable", lambda: None)
    monkeypatch.chdir(ROOT)
    try:
        code = main(["check", "--out", str(tmp_path), *options])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
