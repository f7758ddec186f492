"""Kernels, compiled for two GPUs without one: no spills, within shared memory, on matrix instructions, no slower than
they were estimated.

Here fp16: of one variant two batches for Hopper, of two variants one for Blackwell. tests/kernels/test_oldest_triton.py
has other precisions, and for the least shared memory other sizes and variants. `make kernels-report` compiles all.
"""

import subprocess
import sys

import pytest
import triton
from compiled_report import OPERATIONS, ROOT, faults, report

CHIPS = (90, 100)
ESTIMATES = ROOT / "benchmarks" / "results" / "nvidia-h100" / "estimate.json"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    options = ("--precision", "fp16", "--size", "224")
    hopper = ("--chips", "90", "--variants", "base-p16", "--batch", "1", "128", "--against", str(ESTIMATES))
    blackwell = ("--chips", "100", "--variants", "base-p16", "small-p16", "--batch", "128")
    return [
        *report(tmp_path_factory.mktemp("hopper"), *options, *hopper),
        *report(tmp_path_factory.mktemp("blackwell"), *options, *blackwell),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_every_kernel_compiles_for_every_chip_without_faults(rows):
    assert {row["triton"] for row in rows} == {triton.__version__}
    for chip in CHIPS:
        assert {row["problem"].split()[0] for row in rows if row["chip"] == chip} == OPERATIONS
    assert not faults(rows), "\n".join(faults(rows))


@pytest.mark.slow
def test_large_products_use_the_chips_own_matrix_instructions(rows):
    """One image's are not, nor are the heads': a program takes 8 images, and reading them takes the time."""
    own = {90: "wgmma", 100: "tcgen05"}
    large = [row for row in rows if row["products"] and row["batch"] > 1 and row["kernel"] != "heads_kernel"]
    assert {row["chip"] for row in large} == set(CHIPS)
    others = [row for row in large if row["matrix"] != own[row["chip"]]]
    assert not others, [(row["chip"], row["problem"], row["tile"], row["matrix"]) for row in others]


@pytest.mark.slow
def test_a_detectors_kernels_compile_without_faults(tmp_path):
    """Mask R-CNN's on small-p32, for one image of COCO."""
    rows = report(tmp_path, "--chips", "90", "--precision", "fp16", "--variants", "mask-rcnn")
    assert not faults(rows), "\n".join(faults(rows))
    problems = {row["problem"] for row in rows}
    assert {"conv1x1 fp16 M67200 N256 K256 tokens2", "conv3x3 fp16 B100 H14 W14 N256 K256 stride1"} <= problems
    assert {"conv1x1 fp16 M1000 N1024 K12544 relu", "read_regions fp16 R1000 K256 side7"} <= problems
    products = [row for row in rows if row["products"] and row["kernel"] != "fcu_down_kernel"]
    assert {row["matrix"] for row in products if row["blocks"] >= 132} == {"wgmma"}


def test_chips_without_products_in_fp8_have_none(tmp_path):
    """Nor kernels that would make its numbers: the compiler refuses them there."""
    options = ("--precision", "fp8", "--variants", "tiny-p16", "--batch", "1", "--size", "224")
    assert report(tmp_path, "--chips", "80", "86", *options) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [(("--chips", "90"), "holds no estimates"), (("--chips", "100"), "estimates are of sm_90; add --chips 90")],
    ids=["damaged", "another-chip"],
)
def test_what_cannot_be_compared_is_refused_at_once(options, message, tmp_path):
    (tmp_path / "estimate.json").write_text("{")
    command = [sys.executable, "-m", "benchmarks.kernels_report", *options, "--against", tmp_path / "estimate.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr


DEPENDENT = """
from benchmarks.kernels_report import launches
for chip in (80, 89, 90, 100, 120):
    found = {launch.arguments["DEPENDENT"] for *_, launch in launches(["tiny-p16"], [chip], ["fp16"], [1], [224])}
    assert found == {chip in (90, 100)}, chip
"""


def test_launches_are_those_of_the_chip():
    """All of them: other chips cannot wait for the kernel before, and their assembler refuses it."""
    subprocess.run([sys.executable, "-c", DEPENDENT], cwd=ROOT, check=True, timeout=120)
