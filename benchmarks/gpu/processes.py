"""Processes that end in time: each leads a group of its own, has a limit, and none outlives the suite.

However the suite ends, SIGKILL included, `watchdog.py` sees its pipe closed and kills the groups that are left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .tree import ROOT

DYING_SECONDS = 10.0
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # that end the suite


@dataclass(frozen=True)
class Ended:
    """How a process ended. code: its exit status, -N after signal N, None when its time was over. output: what it
    printed."""

    code: int | None
    output: str
    seconds: float

    @property
    def why(self) -> str:
        """In a line, for a process that did not end well."""
        if self.code is None:
            return f"stopped after {self.seconds:.0f} s"
        lines = [line for line in self.output.splitlines() if line.strip()]
        died = f"died of {signal.Signals(-self.code).name}" if self.code < 0 else f"exit status {self.code}"
        return f"{died}: {lines[-1].strip()[:250] if lines else 'no output'}"


class Processes:
    """Starts them from the checkout's root, in `environment`, with the watchdog beside them. A context manager: at its
    end none runs.

    log:    gets what each has printed when it ends
    folder: has that until then, a file each
    """

    def __init__(self, environment: Mapping[str, str], log: Path, folder: Path) -> None:
        self.environment, self.log, self.folder = environment, log, folder
        self._live: list[Process] = []

    def __enter__(self) -> Processes:
        watchdog = [sys.executable, "-S", "-E", str(Path(__file__).with_name("watchdog.py"))]
        self._watchdog = subprocess.Popen(watchdog, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watchdog.stdin
        self._pipe = self._watchdog.stdin.fileno()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        assert self._watchdog.stdin
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        with _later():
            process = Process(self, command, {**self.environment, **(environment or {})})
            self._live.append(process)
        return process

    def run(self, command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
        return self.start(command, environment).wait(seconds)

    def end(self, but: Collection[Process] = ()) -> None:
        """Ends all that run, but those."""
        for process in [process for process in self._live if process not in but]:
            process.wait(0)

    def watch(self) -> None:
        """Called in the new process, as the leader of its group, before the command."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.write(self._pipe, b"+%d\n" % os.getpid())

    def forget(self, process: Process, group: int) -> None:
        self._live.remove(process)
        os.write(self._pipe, b"-%d\n" % group)


@contextmanager
def _later() -> Iterator[None]:
    """Signals that come inside are handled behind it. What they raise would be lost in the functions that Python calls
    when it forks, and the suite would go on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """A running command, made by Processes.start."""

    def __init__(self, processes: Processes, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._processes, self._command, self._began = processes, command, time.monotonic()
        descriptor, name = tempfile.mkstemp(".log", "running-", processes.folder)
        self._output = Path(name)
        with os.fdopen(descriptor, "wb") as out:
            self._popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.watch,
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._began

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, seconds: float) -> Ended:
        """Its end, or after so many seconds its group's. What it had started and left behind ends too."""
        try:
            code: int | None = self._popen.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
        lasted = self.seconds
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # what waits for a GPU takes no other signal
        with suppress(subprocess.TimeoutExpired):  # one that a driver holds does not even die; the suite goes on
            self._popen.wait(DYING_SECONDS)
        self._processes.forget(self, self._popen.pid)
        ended = Ended(code, self._output.read_text(encoding="utf-8", errors="replace"), lasted)
        with self._processes.log.open("a", encoding="utf-8") as log:
            log.write(f"===== {' '.join(self._command)}\n{ended.output}===== {code}, {lasted:.1f} s\n")
        self._output.unlink()
        return ended
