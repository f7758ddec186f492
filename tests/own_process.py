"""A script of tests/ in a process of its own, which has no threads, descriptors or memory of other tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(script: str, *arguments: object, timeout: float = 7000) -> dict[str, Any]:
    """What it prints as JSON. It says nothing else, and nobody that it has started outlives it."""
    command = [sys.executable, Path(__file__).with_name(script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # it forks
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return json.loads(done.stdout)
