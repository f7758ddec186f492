"""The progress bar: shown to people, and never what another process waits for."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from conformer_fast.progress import Bar

FORKED = """
import json, os, signal, threading
from conformer_fast.progress import Bar

def in_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def bar():
    with Bar("working", 3) as shown:
        shown.update()

def killed_inside():
    Bar.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)

def held_by_a_thread():
    held = threading.Event()
    def hold():
        with Bar.get_lock():
            held.set()
            threading.Event().wait()
    threading.Thread(target=hold, daemon=True).start()
    return held.wait(30)

bar()
print(json.dumps(CODE))
"""


def forked(code: str) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED.replace("CODE", code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("[in_child(killed_inside), in_child(bar), bar()]", [-9, 0, None]),
        ("[held_by_a_thread(), in_child(bar)]", [True, 0]),
    ],
    ids=["killed inside", "held at the fork"],
)
def test_no_process_waits_for_anothers_bar(code, expected):
    assert forked(code) == expected


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["none", "closed"])
def test_no_error_output_is_no_error(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    if stream:
        stream.close()
    with Bar("counting", 4) as bar:
        bar.update()
        bar.set_postfix_str("sheep", refresh=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "asked", "shown"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_it_is_for_terminals_and_gone_at_the_end(stream, asked, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    threads = threading.active_count()
    with Bar("counting", 4, "sheep", done=1, shown=asked) as bar:
        bar.update(2)
        bar.refresh()
        written = sys.stderr.getvalue()
    assert threading.active_count() == threads
    assert ("counting:  75%" in written) == shown
    assert ("3/4" in written) == shown
    assert not sys.stderr.getvalue().rpartition("\r")[2].strip()
