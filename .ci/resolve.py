"""constraints.txt against the public registry alone: for each Python it resolves, and it pins all that is installed.

    python .ci/resolve.py 3.11 3.12 3.13 3.14

Resolved is what `make dev` and `make cluster` install and what they build with, as wheels for Linux on x86-64; only
metadata is fetched.
No setting of pip or uv takes part: a local folder of wheels may hold a PyTorch that requires less than the registry's.
"""

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = (sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", "--no-header", "--no-annotate")
PLATFORM = ("--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:", "--python", sys.executable)
TORCHS = ("cuda-", "nvidia-")  # what only a PyTorch with CUDA installs; it pins them itself


def names(requirements: str) -> set[str]:
    """The packages of lines "name==version", named as the registry does."""
    pinned = (line.partition("==")[0] for line in requirements.splitlines() if not line.startswith("#"))
    return {name.lower().replace("_", "-").replace(".", "-") for name in pinned}


def resolved(python: str) -> set[str]:
    """The packages for this Python; the process exits with 1 and uv's explanation if their requirements conflict."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    sources = ("pyproject.toml", "-", "--extra", "dev", "--extra", "ray", "--constraints", "constraints.txt")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    started = time.monotonic()
    done = subprocess.run(
        [*UV, *sources, *PLATFORM, "--python-version", python],
        cwd=ROOT, env=environment, input="\n".join(build), capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"Python {python}: constraints.txt and pyproject.toml do not resolve\n{done.stderr}")
    found = names(done.stdout)
    print(f"Python {python}: {len(found)} packages, {time.monotonic() - started:.1f} s")
    return found


def main(pythons: list[str]) -> None:
    pinned = names((ROOT / "constraints.txt").read_text())
    found = set().union(*map(resolved, pythons))
    missing = sorted(name for name in found - pinned if not name.startswith(TORCHS))
    stale = sorted(pinned - found)
    if missing or stale:
        sys.exit(f"constraints.txt does not pin {missing}, and pins what nothing requires: {stale}")


if __name__ == "__main__":
    main(sys.argv[1:])
