"""The GPU suite without a GPU: what it counts, how it merges, that whatever fails is a result, and what it prints."""

import ast
import functools
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import conformer_fast as cf
from benchmarks import recorded
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import clock, facts, kernels, points, results, roofline, stages, tables, tree
from benchmarks.gpu.results import Results
from benchmarks.gpu.roofline import Ceilings, Operation
from conformer_fast import functional

ROOT = Path(__file__).parents[1]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
MACHINE = {
    "gpu": "NVIDIA Test",
    "capability": "9.0",
    "driver": "1",
    "torch": "2.11",
    "triton": "3.6",
    "memory_gib": 80,
}
CEILINGS = {
    "bytes_per_second": 3e12,
    "l2_bytes": 25e6,
    "l2_bytes_per_second": 5e12,
    "flops_per_second": {"fp16": 790e12, "int8": 1500e12, "fp8": 1500e12},
    "gap": 2e-6,
    "dependent_gap": 1e-6,
}
PRODUCTS = {"8192x8192x8192": CEILINGS["flops_per_second"]}
STAMP = {"commit": "abc", "source": "s1"}
# GMAC, megabytes of weights, and of activations an image in one precision: computed by hand for one kernel a product,
# the stem's pool and FCU-down's average in kernels of their own, which here they are not
BY_HAND = {
    "tiny-p16": (5.14, 47, 73),
    "small-p32": (6.62, 78, 107),
    "small-p16": (10.27, 75, 142),
    "base-p16": (22.58, 166, 210),
}


def total(operations, what):
    return sum(operation.count * getattr(operation, what) for operation in operations)


@pytest.mark.parametrize("variant", stages.VARIANTS)
def test_what_the_network_must_do(variant):
    one, two = (roofline.network(variant, batch, "fp32") for batch in (1, 2))
    gmac, weights, activations = BY_HAND[variant]
    assert sum(operation.count for operation in one) == 158
    assert total(one, "flops") / 2e9 == pytest.approx(gmac, abs=0.005)
    an_image = total(two, "bytes") - total(one, "bytes")
    assert (total(one, "bytes") - an_image) / 2e6 == pytest.approx(weights, abs=0.7)
    assert 0.94 * activations < an_image / 2e6 < activations


def test_floors():
    ceilings = Ceilings(
        bytes_per_second=100,
        l2_bytes=50,
        l2_bytes_per_second=500,
        flops_per_second={"fp16": 1000, "int8": 2000},
        gap=1,
        dependent_gap=0.5,
    )
    work = {
        ("memory", 4.0): ("fp16", 200, 200, 10),
        ("memory", 2.1): ("fp16", 200, 50, 10),  # its activations stay in the L2 cache
        ("products", 5.0): ("fp16", 50, 50, 5000),
        ("products", 2.5): ("int8", 50, 50, 5000),
        ("launch", 0.02): ("fp16", 0, 10, 10),
    }
    for (bound, seconds), given in work.items():
        operation = Operation("", "", {}, 2, *given)
        assert operation.bound(ceilings) == bound
        assert operation.floor(ceilings) == pytest.approx(seconds)


@pytest.mark.parametrize("variant", stages.VARIANTS)
def test_floors_of_the_network(variant):
    ceilings = Ceilings(**{**CEILINGS, "l2_bytes": 0})
    plain, large = (roofline.floors(variant, batch, "fp16", ceilings) for batch in (1, 128))
    assert plain.launch == pytest.approx(158 * 2e-6, rel=0.01)
    assert plain.dependent_launch < 0.6 * plain.launch
    assert large.fused < large.floor <= large.dependent_launch <= large.launch
    in_cache = roofline.floors(variant, 8, "fp16", Ceilings(**CEILINGS))
    assert in_cache.floor < roofline.floors(variant, 8, "fp16", ceilings).floor
    without = roofline.floors(variant, 128, "fp16", Ceilings(**{**CEILINGS, "l2_bytes": 0, "dependent_gap": None}))
    assert (without.dependent_launch, without.floor) == (None, large.floor)


@pytest.mark.parametrize("variant", stages.VARIANTS)
def test_what_fused_bottlenecks_spare(variant):
    """By hand, in elements an image: of 7 bottlenecks at 56x56 and 8 at 28x28 the map between their last two
    convolutions, twice, and their result, which is 4 times as wide, once; of the first of both the projected residual,
    twice. Seen in the floors of a machine that multiplies at no cost."""
    inner = {"tiny-p16": 16, "small-p32": 64, "small-p16": 64, "base-p16": 96}[variant]  # channels, then twice as many
    spared = 56**2 * inner * (7 * (2 + 4) + 2 * 4) + 28**2 * 2 * inner * (8 * (2 + 4) + 2 * 4)
    ceilings = Ceilings(1e9, 0, 1e9, dict.fromkeys(("fp32", "fp16"), math.inf), 0, None)
    one, two = (roofline.floors(variant, batch, "fp32", ceilings) for batch in (1, 2))
    assert ((two.floor - one.floor) - (two.fused - one.fused)) * 1e9 == pytest.approx(4 * spared)


def test_8_bits_are_counted():
    """Weights take half the bytes; what is between products is as it was."""
    fp16, int8, fp8 = (roofline.network("small-p16", 2, precision) for precision in ("fp16", "int8", "fp8"))
    assert {o.name for o in fp8 if o.precision == "fp16"} == {"stem", "attention", "heads", "conv1x1", "conv3x3"}
    assert sum(o.count for o in fp8 if o.precision == "fp16") == sum(o.count for o in int8 if o.precision == "fp16") + 5
    weights = total(int8, "weights") / total(fp16, "weights")
    assert 0.5 < weights < 0.55
    assert total(int8, "activations") == total(fp16, "activations")
    assert total(int8, "flops") == total(fp16, "flops")
    in_8_bits = sum(o.count * o.flops for o in int8 if o.precision == "int8")
    assert {o.name for o in int8 if o.precision == "fp16"} == {"attention", "heads"}
    assert 0.9 < in_8_bits / total(int8, "flops") < 1


def test_strided_operations_read_what_they_need():
    operations = roofline.network("tiny-p16", 1)
    strided = next(o for o in operations if o.name == "conv1x1" and o.arguments["stride"] == 2)
    _, H, W, K = strided.arguments["feature_map"].shape
    N = strided.arguments["weight"].shape[0]
    assert strided.bytes == 2 * (H * W // 4 * (K + N) + N * K + N)


def test_random_arguments_are_like_the_recorded_ones():
    operation = next(o for o in roofline.network("tiny-p16", 1) if o.name == "conv3x3")
    made = roofline.filled(operation.arguments, "cpu", 0)
    for given, value in zip(operation.arguments.values(), made, strict=True):
        if isinstance(given, torch.Tensor):
            assert (value.shape, value.stride(), value.dtype) == (given.shape, given.stride(), given.dtype)
            assert value.float().std() > 0
        else:
            assert value == given
    assert not torch.equal(made[0], roofline.filled(operation.arguments, "cpu", 1)[0])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_random_arguments_in_8_bits_give_results_near_1(precision):
    for operation in roofline.network("tiny-p16", 1, precision):
        if operation.precision == precision and operation.flops < 1e8:
            given = roofline.filled(operation.arguments, "cpu", 0)
            result = getattr(functional, operation.name)(*given)
            for values in result if isinstance(result, tuple) else [result]:
                assert 0.1 < values.float().std() < 10, operation.problem


@pytest.mark.parametrize("variant", stages.VARIANTS)
def test_what_fp8_leaves_in_16_bits_costs_little(variant):
    """As quantization.py says: 3 to 5 % of all products, and most of them wait for memory."""
    flops = {}
    for precision in ("int8", "fp8"):
        operations = roofline.network(variant, 128, precision)
        flops[precision] = sum(o.count * o.flops for o in operations if o.precision == precision)
    share = (flops["int8"] - flops["fp8"]) / total(operations, "flops")
    assert 0.025 < share < 0.055
    left = [o for o in operations if o.precision == "fp16" and o.name in ("stem", "conv1x1", "conv3x3")]
    bounds = [o.bound(Ceilings(**CEILINGS)) for o in left]
    assert sum(o.count for o in left) == 5
    assert bounds.count("memory") >= 3


# Results


@pytest.fixture
def file(tmp_path):
    return tmp_path / "out" / "gpu.json"


def test_results_are_merged(file):
    first = Results(file, MACHINE, STAMP)
    first.put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    first.put("points", ("ours", "tiny-p16", 1), {"ms": 1.0})
    second = Results(file, MACHINE, {"commit": "def", "source": "s2"})
    second.put("points", ("ours", "tiny-p16", 1), {"ms": 0.5})
    (entry,) = json.loads(file.read_text())["machines"]
    assert {(row["implementation"], row["ms"], row["commit"], row.get("previous_ms")) for row in entry["points"]} == {
        ("eager", 5.0, "abc", None),
        ("ours", 0.5, "def", 1.0),
    }
    assert [path.name for path in file.parent.iterdir()] == ["gpu.json"]


def test_machines_never_mix(file):
    Results(file, MACHINE, STAMP).put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    other = Results(file, {**MACHINE, "driver": "2"}, STAMP)
    assert other.find("points", ("eager", "tiny-p16", 1)) is None
    other.put("points", ("eager", "tiny-p16", 1), {"ms": 6.0})
    entries = json.loads(file.read_text())["machines"]
    assert [(entry["machine"]["driver"], entry["points"][0]["ms"]) for entry in entries] == [("1", 5.0), ("2", 6.0)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"machines": '])
def test_a_foreign_file_is_not_overwritten(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=r"gpu\.json is not a result file of this suite; move it away"):
        Results(file, MACHINE, STAMP)
    assert file.read_text() == text


def test_due_is_what_is_missing_then_the_oldest(file):
    store = Results(file, MACHINE, STAMP)
    keys = [("eager", "tiny-p16", batch) for batch in (1, 8, 32)]
    assert store.due("points", keys, lambda row: True) == keys
    for key in (keys[1], keys[0]):
        store.put("points", key, {"ms": 1.0})
    assert store.due("points", keys, lambda row: True) == [keys[2], keys[1]]
    store.put("points", keys[1], {"ms": 1.0})
    assert store.due("points", keys, lambda row: True) == [keys[2], keys[0]]
    assert store.due("points", keys, lambda row: row["batch"] != 8) == [keys[1], keys[2], keys[0]]


# Stages, with pretended measurements


class Pretended:
    """In place of stages.work: what was asked, and figures like real ones. `failing` implementations fail."""

    def __init__(self):
        self.asked, self.failing = [], set()

    def __call__(self, task, arguments, environment, seconds, log):
        name = (arguments.get("implementation"), arguments.get("variant"), arguments.get("batch"))
        self.asked.append((task, *(part for part in name if part is not None)))
        if task in ("build", "facts"):
            return {"machine": MACHINE, "ceilings": CEILINGS, "products": PRODUCTS}
        if name[0] in self.failing:
            return None if name[0] == "torch.compile" else {"failed": "RuntimeError: no luck"}
        if task == "kernels":
            one = {"problem": "linear fp16 M197 N384 K384", "count": 12, "choice": [64, 64, 64, 4, 3], "reason": "rule"}
            one |= {"us": 9.0, "gbs": 900.0, "tflops": 9.0, "floor_us": 3.0, "times_floor": 3.0, "bound": "memory"}
            return {"sum_ms": 0.9, "operations": [{**one, "share": 0.1}] * 38}
        median = {"ours int8": 3e-3, "ours fp8": 4e-3}.get(name[0], 1e-3)
        times = clock.Times(median=median, low=9e-4, high=2e-3, calls=300, speedup=1.0)
        row = points.figures(times, "digits", name[2], stages.QUANTISED.get(name[0], "fp16"), Ceilings(**CEILINGS))
        row |= {"how": "", "error": 1e-3, "peak_bytes": 1, "build_seconds": 2.0}
        return row | ({} if name[0] == "ours" else {"ours_ms": 0.5, "ours_speedup": 2.0})

    def measured(self):
        measured = [asked for asked in self.asked if asked[0] != "build"]
        self.asked = []
        return measured


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(stages, "work", pretended := Pretended())
    return pretended


@pytest.fixture
def start(file):
    def start(source="s1", seconds=100.0, **options):
        store = Results(file, MACHINE, {"commit": "abc", "source": source})
        store.entry |= {"ceilings": CEILINGS, "products": PRODUCTS}
        return stages.Session(store, {}, file.with_name("log"), seconds, 60.0, say=lambda line: None, **options)

    return start


def test_ours_is_measured_again_when_the_code_changes(pretended, start):
    stages.ours(start(), ["tiny-p16"], [1, 8])
    builds = [asked for asked in pretended.asked if asked[0] == "build"]
    assert sorted(builds) == [("build", "tiny-p16", 1), ("build", "tiny-p16", 8)]
    both = [("point", "ours", "tiny-p16", 1), ("point", "ours", "tiny-p16", 8)]
    tables_of_both = [("kernels", "tiny-p16", 1), ("kernels", "tiny-p16", 8)]
    assert pretended.measured() == both + tables_of_both
    stages.ours(start(), ["tiny-p16"], [1, 8])
    assert pretended.measured() == [both[0], tables_of_both[0]]
    stages.ours(start("s2"), ["tiny-p16"], [1, 8])
    assert pretended.measured() == both + tables_of_both


def test_peers_are_kept_and_one_measured_again(pretended, start):
    pretended.failing = {"torch.compile", "torch.compile max-autotune"}
    session = start()
    stages.peers(session, ["tiny-p16"], [1])
    assert [asked[1] for asked in pretended.measured()] == list(stages.PEERS)
    assert session.failures == []  # of a peer it is a result
    rows = {row["implementation"]: row.get("failed") for row in session.results.entry["points"]}
    assert rows["eager"] is None
    assert rows["torch.compile"] == "stopped after 60 s"
    assert rows["torch.compile max-autotune"] == "RuntimeError: no luck"
    stages.peers(start("s2"), ["tiny-p16"], [1])
    assert pretended.measured() == [("point", "eager", "tiny-p16", 1)]
    stages.peers(start("s2"), ["tiny-p16"], [1])
    assert pretended.measured() == [("point", "torch.compile", "tiny-p16", 1)]
    stages.peers(start("s2", again=True), ["tiny-p16"], [1])
    assert len(pretended.measured()) == len(stages.PEERS)


def test_8_bits_are_measured_where_there_are_such_products(pretended, start):
    session = start()
    stages.quantised(session, ["tiny-p16"], [1])
    assert {asked[1:] for asked in pretended.asked if asked[0] == "point"} == {
        ("ours int8", "tiny-p16", 1),
        ("ours fp8", "tiny-p16", 1),
    }
    assert {row["precision"] for row in session.results.entry["kernels"]} == {"int8", "fp8"}
    printed = tables.everything(session.results.entry)
    (line,) = [line for line in printed.splitlines() if line.startswith("tiny-p16 B1 ")]
    assert line.split()[-2:] == ["3.000", "4.000"]
    ampere = start("s2")
    ampere.results.entry["ceilings"] = {**CEILINGS, "flops_per_second": {"fp16": 270e12, "int8": 540e12}}
    pretended.measured()
    stages.quantised(ampere, ["tiny-p16"], [1])
    assert [asked[1:] for asked in pretended.measured() if asked[0] == "point"] == [("ours int8", "tiny-p16", 1)]


def test_our_failure_is_a_failure(pretended, start):
    pretended.failing = {"ours"}
    session = start()
    stages.ours(session, ["tiny-p16"], [1])
    assert session.failures == ["ours tiny-p16 1: RuntimeError: no luck"]
    pretended.measured()
    stages.ours(start(), ["tiny-p16"], [1])
    assert ("point", "ours", "tiny-p16", 1) in pretended.measured()  # not kept


def test_what_there_is_no_time_for_is_left(pretended, start):
    session = start(seconds=stages.LEAST_SECONDS - 1)
    stages.peers(session, ["tiny-p16"], [1, 8])
    assert pretended.measured() == []
    assert session.left[0] == "eager tiny-p16 1"
    assert len(session.left) == 6
    pretended.failing = {"torch.compile"}  # what hangs until the stage is over, not for point_seconds, is unknown
    session = start(seconds=stages.LEAST_SECONDS + 1)
    stages.peers(session, ["tiny-p16"], [1])
    assert session.left == ["torch.compile tiny-p16 1"]
    assert session.results.find("points", ("torch.compile", "tiny-p16", 1)) is None


def test_every_stored_field_is_described(pretended, start):
    session = start()
    pretended.failing = {"torch.compile"}
    stages.ours(session, ["tiny-p16"], [1])
    stages.peers(session, ["tiny-p16"], [1])
    stages.peers(session, ["tiny-p16"], [1])
    described = set(", ".join(results.ABOUT).split(", "))
    plain = {"implementation", "variant", "batch", "date", "how", "calls", "images_per_second", "tflops", "gbs"}
    plain |= {"sum_ms", "operations", "problem", "count", "reason", "share"}
    rows = [*session.results.entry["points"], *session.results.entry["kernels"]]
    rows += session.results.entry["kernels"][0]["operations"]
    assert {name for row in rows for name in row} <= described | plain


def test_tables_fit_what_is_shown(pretended, start):
    session = start()
    stages.ours(session, stages.VARIANTS, stages.BATCHES)
    stages.peers(session, stages.VARIANTS, stages.BATCHES)
    session.results.put("tests", ("test_kernel_linear.py",), {"outcome": "1 failed", "failed": "exit status 1"})
    stages.peers(start("s2"), ["base-p16"], [128])
    stages.ours(again := start("s2"), ["base-p16"], [128])
    printed = tables.everything(again.results.entry, suite.SHOWN)
    assert len(printed) < 11_000
    lines = printed.splitlines()
    assert lines[0].split() == ["test_kernel_linear.py", "1", "failed", "FAILED"]
    (line,) = [line for line in lines if line.startswith("small-p16 B32")]
    floors = roofline.floors("digits", 32, "fp16", Ceilings(**CEILINGS))
    shares = [f"{floor / 1e-3:.0%}" for floor in (floors.floor, floors.fused)]
    assert line.split()[2:] == [*["1.000"] * 4, *["2.00"] * 3, "32000", *shares, "1e-03", "-", "-"]
    (line,) = [line for line in lines if line.startswith("base-p16 B128 ")]
    assert line.count("2.00*") == 2  # measured against the earlier source
    assert sum(line.startswith("linear fp16") for line in lines) == 4 * suite.SHOWN
    assert len(tables.everything(again.results.entry).splitlines()) > 16 * 38


@pytest.fixture
def command_line(pretended, monkeypatch, tmp_path):
    """Runs the suite where there seems to be a GPU; pytest ends with this status and output."""

    def command_line(*arguments, ends=(0, "5 passed in 1.00s")):
        monkeypatch.setattr(stages, "_timed", lambda session, command, environment: (*ends, 1.0))
        return suite.main([*arguments, "--out", str(tmp_path / "out"), "--variants", "tiny-p16", "--batch", "1"])

    monkeypatch.setattr(suite, "unusable", lambda: None)
    monkeypatch.setattr(suite.signal, "signal", lambda *_: None)
    monkeypatch.setattr(stages.shutil, "which", lambda *_, **__: None)
    return command_line


def test_the_whole_suite(command_line, pretended, file, capsys):
    assert command_line() == 0
    assert {task for task, *_ in pretended.measured()} == {"facts", "point", "kernels"}
    (entry,) = json.loads(file.read_text())["machines"]
    assert (entry["machine"], entry["ceilings"], entry["products"]) == (MACHINE, CEILINGS, PRODUCTS)
    assert (len(entry["points"]), len(entry["kernels"])) == (6, 3)
    outcomes = {row["name"]: row["outcome"] for row in entry["tests"]}
    assert outcomes["test_cuda_graph_gpu.py"] == "5 passed in 1.00s"
    sanitizer = [f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck")]
    assert {outcomes[name] for name in sanitizer} == {"absent"}
    assert list(outcomes)[-2:] == sanitizer  # the slowest, and what hangs takes all the time that is left
    assert {path.name for path in file.parent.iterdir()} == {"gpu.json", "gpu.txt", "gpu.log"}
    printed = capsys.readouterr().out
    assert file.with_suffix(".txt").read_text().splitlines()[:10] == tables.everything(entry).splitlines()[:10]
    assert tables.everything(entry, suite.SHOWN) in printed


@pytest.mark.parametrize("ends", [(1, "1 failed, 4 passed in 1.00s"), (0, "5 skipped in 1.00s")])
def test_failed_and_skipped_tests_fail_the_suite(command_line, ends, capsys):
    assert command_line("test", ends=ends) == 1
    assert "FAILED test_cuda_graph_gpu.py: exit status" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "outcome", "fails"),
    [
        (
            "..\n5 passed, 1 skipped in 61.00s (0:01:01)\n[W] noise at exit",
            "5 passed, 1 skipped in 61.00s (0:01:01)",
            False,
        ),
        ("===== 5 skipped in 1.00s =====", "5 skipped in 1.00s", True),
        ("no tests ran in 0.01s", "", True),
        ("", "", True),
    ],
)
def test_how_a_test_file_ended(output, outcome, fails, start, monkeypatch):
    monkeypatch.setattr(stages, "_timed", lambda session, command, environment: (0, output, 1.0))
    row = stages._pytest(start(), "test_tuning.py")
    assert (row["outcome"], "failed" in row) == (outcome, fails)


@pytest.mark.parametrize(
    ("tool", "code", "output", "outcome"),
    [
        ("memcheck", 0, "every kernel ran\n========= ERROR SUMMARY: 0 errors", "clean"),
        ("memcheck", 9, "========= ERROR SUMMARY: 2 errors", "found"),
        ("racecheck", 0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "clean"),
        ("racecheck", 0, "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", "found"),
        ("racecheck", 1, "no such device", "did not run"),
        ("memcheck", 1, "AssertionError: no kernel ran\n========= ERROR SUMMARY: 0 errors", "did not run"),
    ],
)
def test_what_the_sanitizer_found(tool, code, output, outcome, start, monkeypatch):
    commands = []
    monkeypatch.setattr(stages.shutil, "which", lambda *_, **__: "compute-sanitizer")
    monkeypatch.setattr(stages, "_timed", lambda session, command, _: commands.append(command) or (code, output, 1.0))
    row = stages._sanitize(start(), tool)
    assert (row["outcome"], "failed" in row) == (outcome, outcome != "clean")
    assert commands[0][:3] == ["compute-sanitizer", "--tool", tool]


def test_a_test_that_hangs_ends_alone(start, monkeypatch):
    """With pytest's plugins, where they are; without them the stage's time ends it."""
    commands = []
    ended = 0, "1 passed in 1.00s", 1.0
    monkeypatch.setattr(stages, "_timed", lambda session, command, environment: commands.append(command) or ended)
    for found, ending in [(True, ["--timeout-method", "thread"]), (None, ["no:cacheprovider", "tests/test_tuning.py"])]:
        monkeypatch.setattr(stages, "find_spec", lambda name, found=found: found)
        stages._pytest(start(), "test_tuning.py")
        assert commands[-1][-2:] == ending
    assert commands[0][commands[0].index("-n") + 1] == "1"  # it measures time: nothing beside it


# Processes


@pytest.fixture
def shell(tmp_path):
    def shell(code, seconds=60.0):
        return stages.run([sys.executable, "-c", code], dict(os.environ), seconds, tmp_path / "log")

    return shell


def test_a_crash_and_an_exit_are_told_apart(shell):
    code, output = shell("import os, signal; print('about to'); os.kill(os.getpid(), signal.SIGSEGV)")
    assert stages.why(code, output).startswith("died of SIGSEGV: ")
    assert stages.why(*shell("import sys; print('x'); sys.exit('no such\\n')")) == "exit status 1: no such"
    assert shell("print(5)") == (0, "5\n")


def test_a_hang_is_ended_with_all_it_started(shell, tmp_path):
    child = f"import time; time.sleep(5); open({str(tmp_path / 'alive')!r}, 'w')"
    start = time.monotonic()
    code, _ = shell(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", seconds=1)
    assert code is None
    assert time.monotonic() - start < 4
    time.sleep(start + 6 - time.monotonic())
    assert not (tmp_path / "alive").exists()


def test_installed_tree_measures_and_fails_in_a_row(tmp_path):
    with tree.installed() as environment:
        site = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
        code = (
            "import benchmarks, conformer_fast.engines.cache as a, conformer_fast.kernels.dispatch as b, os\n"
            "print(benchmarks.__file__, a.__file__, b.__file__, os.environ['CONFORMER_FAST_CACHE'], sep='\\n')"
        )
        command = [sys.executable, "-c", code]
        _, output = stages.run(command, environment, 120, tmp_path / "log")
        package = site / "conformer_fast"
        files = [
            ROOT / "benchmarks" / "__init__.py",
            package / "engines" / "cache.py",
            package / "kernels" / "dispatch.py",
        ]
        assert output.splitlines() == [*map(str, files), str(site.parent / "cache")]
        arguments = {"implementation": "eager", "variant": "digits", "batch": 1, "ceilings": CEILINGS}
        row = stages.work("point", arguments, environment | NO_GPU, 120, tmp_path / "log")
        assert list(row) == ["failed"]
        assert "CUDA" in row["failed"] or "NVIDIA" in row["failed"]
    assert not site.exists()


def test_installed_folders_are_those_of_setup():
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "setup"]
    mapped = next(ast.literal_eval(word.value) for word in call.keywords if word.arg == "package_dir")
    assert {target.replace(".", "/"): source for target, source in mapped.items()} == {
        target: source for source, target in tree.FOLDERS.items()
    }


def test_source_is_what_is_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "x.py").write_text("1")
    first = tree.fingerprint("a")
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("1")
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
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'out'}", "STAGES=ours peers", "BATCH=1 8"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks.gpu ours peers --out" in done.stdout
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


def test_command_line():
    options = suite.parser().parse_args([])
    assert "all" in options.stages
    assert options.variants == stages.VARIANTS == tuple(cf.VARIANTS)
    options = suite.parser().parse_args(["ours", "peers", "--variants", "tiny-p16", "--batch", "1", "8"])
    assert (options.stages, options.variants, options.batch) == (["ours", "peers"], ["tiny-p16"], [1, 8])


def test_files_with_tests_for_a_gpu_are_found():
    chosen = {file.name for file in (ROOT / "tests").glob("test_*.py") if stages.on_gpu(file.read_text())}
    assert {"test_kernel_linear.py", "test_kernels_real_sizes.py", "test_cuda_graph_gpu.py"} <= chosen
    assert not {"test_gpu_suite.py", "test_openvino.py", "test_packaging.py"} & chosen


# A point and a table of kernels, timed by a clock that the test controls


@pytest.fixture
def no_gpu_needed(monkeypatch):
    ticks = itertools.count(1)

    def turn(call, calls):
        call()
        return [1e-2 * next(ticks)] * calls

    monkeypatch.setattr(clock, "turn", turn)
    monkeypatch.setattr(clock, "ROUNDS", 2)
    monkeypatch.setattr(clock, "of_graph", lambda calls: [call() for call in calls] and 1e-5)
    for module in (points, kernels, facts):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for module in (points, recorded):
        monkeypatch.setattr(module, "IMAGE", 64)
    roofline._made.cache_clear()
    gpu = SimpleNamespace(L2_cache_size=1000, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    reserved = itertools.count(100, 10)
    for name in ("memory_reserved", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: next(reserved))
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    yield
    roofline._made.cache_clear()


def test_ceilings(no_gpu_needed, monkeypatch):
    """What is measured, of small products: the clock is the test's."""
    monkeypatch.setattr(facts, "SHAPES", ((32, 16, 64), (48, 32, 16)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 20, 8 << 20))
    monkeypatch.setattr(facts, "machine", lambda: MACHINE)
    launched = []
    for name in ("empty_kernel", "dependent_kernel"):

        class Kernel:
            def __getitem__(self, grid, name=name):
                return lambda **options: launched.append((name, options))

        monkeypatch.setattr(facts, name, Kernel())

    def of_graph(calls):
        result = calls[0]()
        if not isinstance(calls[0], functools.partial):
            return 3e-6 if isinstance(result, torch.Tensor) else 1e-6 if launched[-1][1] else 2e-6
        return 3e-6 if calls[0].keywords["out"].nbytes == 2 * (1600 // 32) else 4e-6

    monkeypatch.setattr(clock, "of_graph", of_graph)
    torch.cuda.get_device_properties().L2_cache_size = 1600
    found = facts.measure()
    assert launched == [("dependent_kernel", {"launch_pdl": True}), ("empty_kernel", {})]
    ceilings = Ceilings(**found["ceilings"])
    assert (ceilings.gap, ceilings.dependent_gap, ceilings.l2_bytes) == (2e-6, 1e-6, 800)
    assert ceilings.l2_bytes_per_second == pytest.approx(2 * 100 / 1e-6)
    assert ceilings.l2_bytes_per_second > ceilings.bytes_per_second
    monkeypatch.setattr(clock, "of_graph", lambda calls: 1e-6)  # a cache too small to tell: no faster than memory
    again = facts.ceilings(found["products"])
    assert again["l2_bytes_per_second"] == again["bytes_per_second"]
    assert list(found["products"]) == ["32x16x64", "48x32x16"]
    for precision, rate in ceilings.flops_per_second.items():
        assert rate == max(row[precision] for row in found["products"].values())
    assert set(ceilings.flops_per_second) == {"fp16", "int8", "fp8"}
    assert "fp8" not in facts.products((8, 6))["32x16x64"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("precision", facts.PRODUCTS)
def test_products_are_products(precision, monkeypatch):
    monkeypatch.setattr(facts, "DEVICE", "cpu")
    product = facts.PRODUCTS[precision](32, 16, 64)
    x, weight = (torch.as_tensor(cell.cell_contents) for cell in product.__closure__ if cell.cell_contents.ndim == 2)
    if x.shape != (32, 64):
        x, weight = weight, x
    torch.testing.assert_close(product().float(), x.float() @ weight.float().T, rtol=2e-3, atol=1e-2)


def test_the_dependent_kernel_compiles_for_hopper():
    code = (
        "import triton; from triton.backends.compiler import GPUTarget; from triton.compiler import ASTSource\n"
        "from benchmarks.gpu.facts import dependent_kernel\n"
        "source = ASTSource(dependent_kernel, {}, {}, {})\n"
        "print(triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'launch_pdl': True}).asm['ptx'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    for instruction in ("griddepcontrol.launch_dependents", "griddepcontrol.wait"):
        assert instruction in printed.stdout, printed.stderr


def test_turns_and_their_ratios(no_gpu_needed):
    times = clock.in_turn({"peer": lambda: None, "ours": lambda: None}, seconds=0.1)
    # Ticks 1 to 4 warm up and choose 3 and 2 calls; then 5 and 7 are the peer's rounds, 6 and 8 ours.
    assert (times["peer"].median, times["peer"].calls) == (pytest.approx(0.06), 6)
    assert (times["ours"].low, times["ours"].high, times["ours"].calls) == (pytest.approx(0.06), pytest.approx(0.08), 4)
    assert times["ours"].speedup == pytest.approx((5 / 6 + 7 / 8) / 2)


def test_a_point(no_gpu_needed):
    torch.manual_seed(0)
    row = points.measure("eager", "digits", 2, CEILINGS)
    assert 1e-5 < row["error"] < 1e-2
    assert row["peak_bytes"] == 10
    assert row["images_per_second"] == pytest.approx(2e3 / row["ms"])
    assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert row["share_of_fused_floor"] == pytest.approx(row["fused_floor_ms"] / row["ms"])
    assert row["tflops"] == pytest.approx(row["flops"] / row["ms"] / 1e9)
    assert "ours_failed" in row or row["ours_speedup"] > 0
    json.dumps(row, allow_nan=False)


def test_launches_share_all_but_the_weights(no_gpu_needed):
    operation = next(o for o in roofline.network("digits", 1) if o.name == "linear" and o.arguments["gelu"])
    sets = [launch.args[1] for launch in kernels._launches(operation)]
    assert len(sets) == kernels.LEAST
    x, weight, bias, gelu, residual, norm_weight, norm_bias, *_ = map(list, zip(*sets, strict=True))
    assert len({value.data_ptr() for value in x}) == 1
    for own in (weight, bias, norm_weight, norm_bias):
        assert len({value.data_ptr() for value in own}) == len(sets)
    assert set(zip(gelu, residual, strict=True)) == {(True, None)}


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_a_table_of_kernels(precision, no_gpu_needed, monkeypatch):
    monkeypatch.setattr(kernels.dispatch, "choose", lambda plan, gpu: (kernels.dispatch.PYTORCH, "for this test"))
    table = kernels.measure("digits", 1, precision, CEILINGS)
    rows = table["operations"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert table["sum_ms"] == pytest.approx(sum(row["count"] for row in rows) * 1e-2)
    lost = [row["count"] * (row["us"] - row["floor_us"]) for row in rows]
    assert lost == sorted(lost, reverse=True)
    assert {row["reason"] for row in rows} == {"for this test"}
    json.dumps(table, allow_nan=False)
