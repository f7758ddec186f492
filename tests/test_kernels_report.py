"""Every kernel, compiled for six GPUs without one: no spills, within shared memory, on matrix instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformer_fast.config import VARIANTS

ROOT = Path(__file__).parents[1]
CHIPS = (80, 86, 89, 90, 100, 120)
OPERATIONS = {
    "attention",
    "conv1x1",
    "conv3x3",
    "conv3x3_pool",
    "fcu_down",
    "fcu_up",
    "heads",
    "linear",
    "patch_embed",
    "pool",
    "preprocess",
    "stem",
}


def report(folder, *options):
    """The report's rows, made in a process of its own: in this one the kernels are for the interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.kernels_report", "--json", folder / "rows.json", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert (folder / "rows.json").exists(), done.stderr
    rows = json.loads((folder / "rows.json").read_text())
    assert done.returncode == any(row["faults"] for row in rows)
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In fp16."""
    return report(tmp_path_factory.mktemp("report"))


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_every_kernel_of_every_variant_compiles_without_faults(rows):
    assert {(row["chip"], row["variant"]) for row in rows} == {(chip, name) for chip in CHIPS for name in VARIANTS}
    for variant in VARIANTS:
        assert {row["problem"].split()[0] for row in rows if row["variant"] == variant} == OPERATIONS
    faults = [
        f"sm_{row['chip']} {row['problem']} {row['tile']}: {', '.join(row['faults'])}" for row in rows if row["faults"]
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_large_products_use_the_chips_own_matrix_instructions(rows):
    """The heads' are not large: a program takes 8 images, and the time goes into reading maps and weights."""
    own = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
    large = [row for row in rows if row["batch"] == 128 and row["products"] and row["kernel"] != "heads_kernel"]
    assert large
    others = [row for row in large if row["matrix"] != own[row["chip"]]]
    assert not others, [(row["chip"], row["problem"], row["tile"], row["matrix"]) for row in others]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_products_in_8_bits(tmp_path):
    """FP8 from compute capability 8.9 on; where the chip has none, PyTorch runs the product. Two chips and one variant:
    `python -m benchmarks.kernels_report --precision int8 fp8` compiles the rest, in half an hour."""
    rows = report(
        tmp_path, "--precision", "int8", "fp8", "--batch", "128", "--chips", "80", "90", "--variants", "tiny-p16"
    )
    for precision, chips, left_out in (("int8", (80, 90), set()), ("fp8", (90,), {"stem"})):
        stored = [row for row in rows if row["problem"].split()[1] == f"{precision}-fp16"]
        assert {row["chip"] for row in stored} == set(chips)
        assert {row["problem"].split()[0] for row in stored} == {
            "conv1x1", "conv3x3", "conv3x3_pool", "fcu_down", "fcu_up", "linear", "patch_embed", "stem"
        } - left_out  # fmt: skip
    faults = [
        f"sm_{row['chip']} {row['problem']} {row['tile']}: {', '.join(row['faults'])}" for row in rows if row["faults"]
    ]
    assert not faults, "\n".join(faults)
