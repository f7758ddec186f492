"""As the first process of a container, which the kernel lets no signal end that it has no handler for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(autouse=True)
def _hears_ctrl_c():
    """Also where a shell started this in the background, whose jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def _needs_containers():
    if shutil.which("unshare") is None or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("may not make a container")


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def awaited(found: Callable[[], list[int]], program: subprocess.Popen) -> list[int]:
    while not (processes := found()):
        assert program.poll() is None, program.stderr.read()
        time.sleep(0.01)
    return processes


def ended(number: int, workers: int, *arguments: object) -> tuple[int, str, str]:
    """Status, output and errors of a command that gets the signal as the first process, when so many decode for it. In
    the end nobody holds its output open."""
    command = [*CONTAINER, sys.executable, "-m", "conformer_fast.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as program:
        (first,) = awaited(lambda: children(program.pid), program)
        (second,) = awaited(lambda: children(first), program)
        if workers:
            awaited(lambda: children(second)[workers:], program)  # beside the one that multiprocessing has for itself
        os.kill(first, number)
        out, err = program.communicate(timeout=5)
        return program.returncode, out, err


def test_a_signal_ends_it():
    assert ended(signal.SIGTERM, 0, "predict", "absent.png", "--model", "digits") == (143, "", "")
    status, out, err = ended(signal.SIGINT, 0, "predict", "absent.png", "--model", "digits")
    assert (status, out) == (130, "")
    # as far as it has come: to its imports, or to the command
    assert err in {"conformer-fast: interrupted\n", "conformer-fast predict: interrupted\n"}


def test_decoding_processes_end_with_it(digit_folder):
    arguments = ["--model", "digits", "--backend", "reference", "--workers", 2]
    assert ended(signal.SIGTERM, 2, "evaluate", "--data", digit_folder, *arguments) == (143, "", "")


def test_its_status_is_the_commands():
    command = [*CONTAINER, sys.executable, "-m", "conformer_fast.cli", "predict", "--nonsense"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 2
    command[-2:] = ["--version"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_it_ends_where_nobody_is_told_of_children():
    """Whoever starts it may ignore SIGCHLD, and what it starts then does too."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [*CONTAINER, sys.executable, "-c", ignoring, sys.executable, "-m", "conformer_fast.cli", "--version"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
