"""What needs a GPU, executed without one: on the stand-in (tests/stand_in), all of it up to the launch of a kernel.

A wrong argument, a tensor on the wrong device or a missing import in a test file or a task of the GPU suite fails here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import steps
from benchmarks.gpu.pytest_runs import on_gpu

ROOT = Path(__file__).parents[1]
STAND_IN = ROOT / "tests" / "stand_in"
SKIPPED = {  # reasons why tests may be skipped on a GPU too
    "needs two CUDA devices",
    "on a GPU nothing is interpreted",
    "Triton's interpreter does not run it",
}

pytestmark = pytest.mark.slow


def on_stand_in(*command, cwd=ROOT, timeout=600, **environment):
    """What a command of this Python has printed, and its status; it and all it starts see a GPU."""
    path = os.pathsep.join([str(STAND_IN / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN), "PATH": path, **environment}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def pytest_on_stand_in(*files, **environment):
    return on_stand_in("-m", "pytest", "-c", "tests/gpu.ini", "-p", "no:cacheprovider", *files, **environment)


def test_every_test_file_runs_up_to_the_launch():
    """But for the executor's quick tests, which the suite runs below."""
    files = [file for file in sorted((ROOT / "tests").glob("test_*.py")) if on_gpu(file.read_text(encoding="utf-8"))]
    files.append(ROOT / "tests" / "test_runtime_gpu.py")  # TensorRT's, which is not part of the suite
    code, output = pytest_on_stand_in(*files, "-m", "not gpu or slow")
    assert code == 0, output[-6000:]
    assert int(re.search(r"(\d+) passed", output)[1]) > 1000
    for line in re.findall(r"^SKIPPED .*", output, re.MULTILINE):
        assert any(reason in line for reason in SKIPPED), line


JUDGING = ("test_kernel_network.py", "test_kernels_real_sizes.py")
NOT_JUDGING = {"test_operators_are_themselves_again_afterwards"}


def test_wrong_kernels_are_noticed():
    """Kernels whose results are off by 1 fail every test that judges whole networks or real sizes: none compares
    them with themselves."""
    code, output = pytest_on_stand_in(
        *(f"tests/{file}" for file in JUDGING), "--maxfail=1000", "-rpf", STAND_IN_ERROR="1"
    )
    assert code == 1, output[-3000:]
    outcomes = re.findall(r"^(PASSED|FAILED) tests/test_\w+\.py::(\w+)", output, re.MULTILINE)
    assert len(outcomes) > 60
    assert {name for outcome, name in outcomes if outcome == "PASSED"} == NOT_JUDGING


def test_a_tensor_on_the_wrong_device_is_refused():
    code, output = on_stand_in("-c", "import torch; torch.ones(2, device='cuda') + torch.ones(2)")
    assert code == 1
    assert "Expected all tensors to be on the same device" in output
    launch = (
        "import torch; from conformer_fast.kernels import dispatch\n"
        "x = torch.ones(64, 64, device='cuda').half()\n"
        "plan = dispatch.PLANS['linear'](x, x, x[0].cpu())\nplan.launch(plan.tiles[0])"
    )
    code, output = on_stand_in("-c", launch)
    assert code == 1
    assert "Pointer argument bias_ptr of linear_kernel is not on the GPU" in output


def test_a_wrong_argument_of_a_launch_is_refused():
    launch = "from benchmarks.gpu.facts import empty_kernel\nempty_kernel[(1,)](n=1)"
    code, output = on_stand_in("-c", f"import sys; sys.path.append({str(ROOT)!r})\n{launch}")
    assert code == 1
    assert "TypeError: empty_kernel takes [], it was given ['n']" in output


# The whole suite


NAMES = [name for name in steps.WHOLE if name not in ("ours", "peers", "tests")]


def suite(out, *names):
    options = ("--out", out, "--variants", "small-p16", "--batch", "2", "--seconds", "500")
    return on_stand_in("-m", "benchmarks.gpu", *names, *options)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of all but what is more of the same, and `tests`, whose files run above: status, output and folder."""
    out = tmp_path_factory.mktemp("first")
    return *suite(out, *NAMES), out


def entry_of(out):
    (entry,) = json.loads((out / "gpu.json").read_text())["machines"]
    return entry


@pytest.mark.timeout(600)
def test_the_whole_suite_runs(first):
    code, output, out = first
    assert code == 0, output[-6000:]
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.txt", "gpu.log", "ncu.csv"}
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


@pytest.mark.timeout(600)
def test_a_second_run_goes_on_and_tunes(first, tmp_path):
    """In a copy of the tree: it writes there what ships."""
    *_, earlier = first

    tree = tmp_path / "tree"
    for folder in ("benchmarks", "conformer_fast", "engines", "kernels", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so"))
    command = ("-m", "benchmarks.gpu", "check", "tune", "--out", tmp_path / "out", "--resume", earlier / "gpu.json")
    code, output = on_stand_in(*command, cwd=tree)
    assert code == 0, output[-6000:]
    assert f"resumes {earlier / 'gpu.json'}: this machine" in output
    assert re.search(r"check: (\d+) operations, 0 failed, \1 of them kept", output)
    (table,) = (tree / "kernels" / "tuned").iterdir()
    assert table.name == "NVIDIA-Stand-In.json"
    assert table.read_bytes() == (tmp_path / "out" / table.name).read_bytes()
    assert len(json.loads(table.read_text())["choices"]) >= 4
    entry = entry_of(tmp_path / "out")
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_suite_that_is_ended_says_what_it_knows(number, tmp_path):
    """And one that would write into the same folder is refused."""
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.gpu", "check", "--out", tmp_path]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
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
    assert "operations are within their bounds" in output.rpartition("NVIDIA Stand-In")[2]
    (row,) = [row for row in entry_of(tmp_path)["steps"] if row["name"] == "check"]
    assert row["failed"] == "the suite was ended while this ran"


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
def test_what_cannot_be_done_is_said_at_once(options, message, tmp_path):
    code, output = on_stand_in("-m", "benchmarks.gpu", "check", "--out", tmp_path, *options)
    assert code == 2
    assert message in output.splitlines()[-1]
