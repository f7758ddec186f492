"""The oldest Triton that pyproject.toml allows compiles every kernel, and its interpreter runs each.

`make test-all` installs it in a folder beside the environment's own and names that in OLDEST_TRITON.
"""

import os
import subprocess
import sys
from importlib.metadata import requires

import pytest
from compiled_report import OPERATIONS, ROOT, faults, report

FOLDER = os.environ.get("OLDEST_TRITON")
IN_8_BITS = {"conv1x1", "conv3x3", "conv3x3_pool", "fcu_down", "fcu_up", "linear", "linear_norm", "patch_embed"}
MULTIPLYING = OPERATIONS - {"nms", "pool", "preprocess", "read_regions"}
MULTIPLIED = {  # in each precision but bf16, whose kernels are those of fp16
    "fp16": MULTIPLYING,
    **dict.fromkeys(("fp32", "tf32"), MULTIPLYING - {"conv1x1_pair"}),
    "int8-fp16": IN_8_BITS | {"stem"},
    "fp8-fp16": IN_8_BITS,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1600),
    pytest.mark.skipif(not FOLDER, reason="needs a second Triton: make test-all"),
]


@pytest.fixture(scope="module")
def oldest():
    """The environment of a process that imports it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / FOLDER)}
    code = "import triton; print(triton.__version__)"
    version = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    release = ".".join(version.split(".")[:2])
    assert any(line.startswith(f"triton>={release};") for line in requires("conformer-fast")), f"found {version!r}"
    return environment


def test_products_in_every_precision(oldest, tmp_path):
    """On an H100. The smallest patches have the longest sequences, which one pass takes in 16 bits alone."""
    options = ("--chips", "90", "--variants", "small-p16", "--batch", "128", "--size", "224")
    options += ("--precision", *(precision.partition("-")[0] for precision in MULTIPLIED))
    rows = report(tmp_path, *options, environment=oldest)
    for precision, operations in MULTIPLIED.items():
        assert {row["problem"].split()[0] for row in rows if row["problem"].split()[1] == precision} >= operations
        products = {row["products"] for row in rows if row["problem"].startswith(f"linear {precision} ")}
        assert products == {precision != "fp32"}  # exact ones are no fault without matrix instructions
    assert not faults(rows), "\n".join(faults(rows))


def test_images_of_another_size(oldest, tmp_path):
    """On the chip with the least shared memory: a sequence that no pass takes at once."""
    options = ("--chips", "120", "--variants", "small-p32", "--precision", "fp16", "--size", "1344")
    rows = report(tmp_path, *options, environment=oldest)
    assert "streaming_kernel" in {row["kernel"] for row in rows}
    assert not faults(rows), "\n".join(faults(rows))


def test_its_interpreter_runs_every_kernel(oldest):
    samples = (
        "kernels/test_network.py::test_a_backbone",  # all operators but the heads, in fp16
        "kernels/test_network.py::test_a_network_in_8_bits[int8]",
        "kernels/test_attention.py::test_large_scores",  # in one pass and streaming
        "kernels/test_preprocess.py::test_extremes",
        "kernels/test_regions.py::test_small_maps",
        "kernels/test_suppress.py::test_random_boxes",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in samples)]
    done = subprocess.run(command, cwd=ROOT, env=oldest, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout, done.stdout
