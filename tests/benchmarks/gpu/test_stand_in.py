"""Test files that need a GPU, executed without one: on the stand-in, all of each up to the launch of a kernel.

A wrong argument, a tensor on the wrong device or a missing import in them fails here. test_whole_suite.py does the same
for the GPU suite.
"""

import re

import pytest
from on_stand_in import ROOT, on_stand_in, pytest_on_stand_in

from benchmarks.gpu.pytest_runs import on_gpu

SKIPPED = {  # reasons why tests may be skipped on a GPU too
    "needs two CUDA devices",
    "on a GPU nothing is interpreted",
    "Triton's interpreter does not run it",
}

pytestmark = pytest.mark.slow


def test_every_test_file_runs_up_to_the_launch():
    """But for the executor's quick tests, which the whole suite runs."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if on_gpu(file.read_text(encoding="utf-8"))]
    files.append(ROOT / "tests" / "engines/tensorrt/test_engine_gpu.py")  # TensorRT's, which is not part of the suite
    code, output = pytest_on_stand_in(*files, "-m", "not gpu or slow")
    assert code == 0, output[-6000:]
    assert int(re.search(r"(\d+) passed", output)[1]) > 1000
    for line in re.findall(r"^SKIPPED .*", output, re.MULTILINE):
        assert any(reason in line for reason in SKIPPED), line


JUDGING = ("kernels/test_network.py", "kernels/test_real_sizes.py")
NOT_JUDGING = {"test_operators_are_themselves_again_afterwards"}


def test_wrong_kernels_are_noticed():
    """Kernels whose results are off by 1 fail every test that judges whole networks or real sizes: none compares
    them with themselves."""
    code, output = pytest_on_stand_in(
        *(f"tests/{file}" for file in JUDGING), "--maxfail=1000", "-rpf", STAND_IN_ERROR="1"
    )
    assert code == 1, output[-3000:]
    outcomes = re.findall(r"^(PASSED|FAILED) tests/[\w/]+\.py::(\w+)", output, re.MULTILINE)
    assert len(outcomes) > 10
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
