"""Decoding processes end with their parent, however it ends and whatever they are importing."""

import os
import subprocess
import sys

import pytest

HANGS = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
PROGRAM = """
import multiprocessing, os, signal
from conformer_fast.evaluation.worker import work

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=work, args=(theirs,), daemon=True).start()
    input()  # it is importing
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("hanging", ["torch", "numpy"])
def test_a_process_that_still_imports_ends_with_its_parent(tmp_path, hanging):
    """Its parent's output is closed then, for whoever reads that to its end."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / f"{hanging}.py").write_text(HANGS)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, tmp_path / "program.py"], text=True, **pipes) as program:
        assert program.stdout.readline() == "importing\n"
        program.communicate("go on\n", timeout=20)
