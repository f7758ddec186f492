"""The progress bar: shown to people, and never what another process waits for."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from conformer_fast import progress
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


@pytest.fixture
def clock(monkeypatch):
    """A pretended one, which is set: clock[0] seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_on_a_pipe_a_line_every_30_seconds(clock, capsys):
    """And none before. What was done by an earlier run is in the count, and not in the rate."""
    with Bar("counting", 40, "sheep", done=10) as bar:
        for _ in range(12):
            clock[0] += 5.5
            bar.update()
    assert capsys.readouterr() == (
        "",
        "counting: 16/40 [00:33<02:12,  5.50s/sheep]\ncounting: 22/40 [01:06<01:39,  5.50s/sheep]\n",
    )
    with Bar("counting", 4) as bar:
        clock[0] += 29.9
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_lines_of_what_has_no_known_end_and_of_shares(clock, capsys):
    bytes_of_memory = {"unit_scale": True, "unit_divisor": 1024}
    with Bar("a.pth", None, "B", **bytes_of_memory) as some, Bar("building", 1.0, bar_format="{bar}") as share:
        clock[0] += 64
        some.update(3 << 20)
        share.update(0.503)
    assert capsys.readouterr().err.splitlines() == [
        "a.pth: 3.00MB [01:04, 49.2kB/s]",
        "building: 0.5/1.0 [01:04<01:04, 128.00s/]",
    ]


def test_without_error_output_nothing_is_printed_elsewhere(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Bar("counting", 4) as bar:
        clock[0] += 100
        bar.update()
    assert capsys.readouterr().out == ""


def test_nothing_on_a_pipe_that_is_not_asked_for(clock, capsys):
    with Bar("counting", 4, shown=False) as bar:
        clock[0] += 100
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_pipe_that_nobody_reads_stops_no_work(clock, monkeypatch):
    gone, pipe = os.pipe()
    os.close(gone)
    with os.fdopen(pipe, "w") as stream, Bar("counting", 4) as bar:
        monkeypatch.setattr(sys, "stderr", stream)
        clock[0] += 100
        bar.update()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)  # what it still holds goes there


def test_what_is_shown_knows_how_far_it_is(clock, monkeypatch):
    """As evaluation asks it, whatever the error output is."""
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar("counting", 4, done=1) as bar:
            bar.update(2)
            assert bar.n == 3
