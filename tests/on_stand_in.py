"""Commands in whose processes there seems to be a GPU: see tests/stand_in."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAND_IN = ROOT / "tests" / "stand_in"


def on_stand_in(*command, cwd=ROOT, timeout=600, **environment):
    """What a command of this Python has printed, and its status; it and all it starts see a GPU."""
    path = os.pathsep.join([str(STAND_IN / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN), "PATH": path, **environment}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def pytest_on_stand_in(*files, **environment):
    options = ("-c", "tests/gpu.ini", "--rootdir", ".", "-p", "no:cacheprovider")
    return on_stand_in("-m", "pytest", *options, *files, **environment)
