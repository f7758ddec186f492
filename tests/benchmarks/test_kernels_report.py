"""Kernels, compiled for two GPUs without one: no spills, within shared memory, on matrix instructions, no slower than
they were estimated.

Here two batches of one variant in fp16, for Hopper and Blackwell; tests/kernels/test_oldest_triton.py has other
precisions, and for the least shared memory other sizes and variants. `make kernels-report` compiles all of them.
"""

import pytest
import triton
from compiled_report import OPERATIONS, ROOT, faults, report

CHIPS = (90, 100)
ESTIMATES = ROOT / "benchmarks" / "results" / "nvidia-h100" / "estimate.json"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    options = ("--variants", "base-p16", "--precision", "fp16", "--size", "224")
    estimated = ("--chips", "90", "--batch", "1", "128", "--against", str(ESTIMATES))
    return [
        *report(tmp_path_factory.mktemp("hopper"), *options, *estimated),
        *report(tmp_path_factory.mktemp("blackwell"), *options, "--chips", "100", "--batch", "128"),
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
