"""What the GPU suite prints."""

import pytest
from gpu_suite_samples import CEILINGS

from benchmarks.gpu import roofline, steps, tables
from benchmarks.gpu.roofline import Ceilings

MOST_LINES = 100
SHOWN_CHARACTERS = 12_000  # that some machines return of what a command printed


@pytest.fixture
def full(start):
    """A session that has everything, and failures of every kind."""
    session = start(variants=steps.VARIANTS, batches=steps.BATCHES)
    session.results.write = lambda: None  # no test here reads the file
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
