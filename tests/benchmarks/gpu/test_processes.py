"""The GPU suite's processes: how their ends are told apart; none outlives its limit, its leader or the suite."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.processes import Processes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def processes(tmp_path):
    with Processes(os.environ, tmp_path / "log", tmp_path) as processes:
        yield processes


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(file: Path) -> int:
    """The number in a file that is being written."""
    for _ in range(200):
        if file.exists() and file.read_text().endswith("\n"):
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{file} was not written")


def gone(pid: int) -> bool:
    """Within five seconds."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def starting_another(file: Path, then: str) -> str:
    """A program that starts another one, which would run for a minute and writes its number into `file`."""
    child = f"import os, time; open({str(file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    return f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n{then}"


def test_a_crash_and_an_exit_are_told_apart(processes):
    crash = "import os, signal; print('about to', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    assert processes.run(python(crash), 60).why == "died of SIGSEGV: about to"
    assert processes.run(python("import sys; sys.exit('no such\\n')"), 60).why == "exit status 1: no such"
    ended = processes.run(python("print(5)"), 60)
    assert (ended.code, ended.output) == (0, "5\n")
    assert 0 < ended.seconds < 60


def test_a_hang_is_ended_with_all_it_started(processes, tmp_path):
    code = starting_another(tmp_path / "pid", "time.sleep(60)")
    process = processes.start(python(code))
    child = wait_for(tmp_path / "pid")
    ended = process.wait(0.1)
    assert ended.code is None
    assert ended.why.startswith("stopped after")
    assert gone(child)


def test_what_a_process_leaves_behind_is_ended(processes, tmp_path):
    code = starting_another(
        tmp_path / "pid", f"while not open({str(tmp_path / 'pid')!r}, 'a+').tell(): time.sleep(0.01)"
    )
    assert processes.run(python(code), 60).code == 0
    assert gone(wait_for(tmp_path / "pid"))


def test_the_log_has_what_all_have_printed(tmp_path):
    log = tmp_path / "log"
    with Processes(os.environ, log, tmp_path) as processes:
        hangs = processes.start(python("import time; print('first', flush=True); time.sleep(60)"))
        while "first" not in "".join(file.read_text() for file in tmp_path.glob("running-*.log")):
            time.sleep(0.05)
        processes.run(python("print('second')"), 60)
        assert hangs.running
    assert not hangs.running
    text = log.read_text()
    assert text.index("second") < text.index("first")  # as they ended
    assert "===== None, " in text
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_none_outlives_the_suite(number, tmp_path):
    """The suite dies while one of its processes runs, which has started another."""
    code = starting_another(tmp_path / "child", "time.sleep(60)")
    suite = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom benchmarks.gpu.processes import Processes\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"with Processes(os.environ, Path({str(tmp_path / 'log')!r}), Path({str(tmp_path)!r})) as processes:\n"
        f"    processes.run([sys.executable, '-c', {code!r}], 60)\n"
    )
    suite = subprocess.Popen(python(suite), cwd=ROOT)
    child = wait_for(tmp_path / "child")
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    suite.send_signal(number)
    assert suite.wait(10) == (143 if number == signal.SIGTERM else -number)
    assert gone(child)
    assert gone(parent)
