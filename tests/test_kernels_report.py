"""Kernels, compiled for four GPUs without one: no spills, within shared memory, on matrix instructions.

Here one batch of one variant in fp16; test_oldest_triton.py has other precisions, sizes and variants, for one GPU.
`make kernels-report` compiles all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[1]
CHIPS = (80, 90, 100, 120)  # of the six: 86 and 89 have 80's instructions and 120's shared memory
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


def report(folder, *options, environment=os.environ):
    """The report's rows, made in a process of its own: in this one the kernels are for the interpreter."""
    environment = {**environment, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.kernels_report", "--json", folder / "rows.json", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert (folder / "rows.json").exists(), done.stderr
    rows = json.loads((folder / "rows.json").read_text())
    assert done.returncode == any(row["faults"] for row in rows)
    return rows


def faults(rows):
    return [
        f"Triton {row['triton']}, sm_{row['chip']}: {row['problem']} {row['tile']}: {', '.join(row['faults'])}"
        for row in rows
        if row["faults"]
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    options = ("--variants", "base-p16", "--precision", "fp16", "--batch", "128", "--size", "224")
    options += ("--chips", *map(str, CHIPS))
    return report(tmp_path_factory.mktemp("report"), *options)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_every_kernel_compiles_for_every_chip_without_faults(rows):
    assert {row["triton"] for row in rows} == {triton.__version__}
    for chip in CHIPS:
        assert {row["problem"].split()[0] for row in rows if row["chip"] == chip} == OPERATIONS
    assert not faults(rows), "\n".join(faults(rows))


@pytest.mark.slow
def test_large_products_use_the_chips_own_matrix_instructions(rows):
    """The heads' are not large: a program takes 8 images, and the time goes into reading maps and weights."""
    own = {80: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
    large = [row for row in rows if row["products"] and row["kernel"] != "heads_kernel"]
    assert {row["chip"] for row in large} == set(CHIPS)
    others = [row for row in large if row["matrix"] != own[row["chip"]]]
    assert not others, [(row["chip"], row["problem"], row["tile"], row["matrix"]) for row in others]
