"""Ctrl-C from the first moment of a command, and a plain end by SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

SCRIPT = """
import os, runpy, signal, sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == WHERE:
            os.kill(os.getpid(), NUMBER)

def opened(event, arguments):  # is called twice of one opening, and a second Ctrl-C would end all at once
    global WHERE
    if event == "open" and arguments[0] == WHERE:
        WHERE = None
        os.kill(os.getpid(), NUMBER)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.meta_path.insert(0, Pressed())
sys.addaudithook(opened)
runpy.run_module("conformer_fast.cli", run_name="__main__")
"""


def interrupted(where: str, *arguments: str, number: int = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """`conformer-fast ARGUMENTS`, with a signal when it imports the module, or opens the file, called `where`."""
    script = f"WHERE, NUMBER = {where!r}, {int(number)}\n{SCRIPT}"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# NumPy's C code tells another story of an interrupted import of datetime, and torch goes on without some of its own.
@pytest.mark.parametrize("module", ["conformer_fast.cli.main", "conformer_fast.cli.predict", "torch", "datetime"])
def test_ctrl_c_during_an_import_is_one_line(module):
    done = interrupted(module, "predict", "absent.png", "--model", "digits", "--weights", "packaged")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "conformer-fast: interrupted\n")


def test_ctrl_c_during_an_import_is_an_object_for_programs():
    done = interrupted("conformer_fast.cli.main", "info", "--json")
    assert (done.returncode, done.stderr) == (130, "conformer-fast: interrupted\n")
    error = {"type": "KeyboardInterrupt", "message": "interrupted"}
    assert json.loads(done.stdout) == {"command": None, "error": error}


def test_ctrl_c_at_work_ends_what_the_command_does(tmp_path):
    """There it is an exception, which tidies up."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    at_work = "predict", str(tmp_path / "a.png"), "--model", "digits", "--weights", "packaged", "--backend", "reference"
    done = interrupted(str(tmp_path / "a.png"), *at_work)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "conformer-fast predict: interrupted\n")


def test_ctrl_c_is_left_ignored_where_a_shell_has_it_so():
    script = SCRIPT.replace("signal.default_int_handler)", "signal.SIG_IGN)")
    command = [sys.executable, "-c", f"WHERE, NUMBER = 'json', {int(signal.SIGINT)}\n{script}", "--version"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_sigterm_ends_it_at_once_and_says_nothing():
    done = interrupted("torch", "info", number=signal.SIGTERM)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
