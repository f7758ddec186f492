"""`python -m benchmarks.kernels_report` in a process of its own, and its rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPERATIONS = {
    "attention",
    "conv1x1",
    "conv1x1_pair",
    "conv3x3",
    "conv3x3_pool",
    "fcu_down",
    "fcu_up",
    "heads",
    "linear",
    "linear_norm",
    "nms",
    "patch_embed",
    "pool",
    "preprocess",
    "read_regions",
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
    assert done.returncode == any(row["faults"] for row in rows), done.stdout[-2000:]
    return rows


def faults(rows):
    return [
        f"Triton {row['triton']}, sm_{row['chip']}: {row['problem']} {row['tile']}: {', '.join(row['faults'])}"
        for row in rows
        if row["faults"]
    ]
