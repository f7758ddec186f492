"""The first process of a container: no signal ends it that it has no handler for, and orphans become its children.

So it leaves the work to another, as `docker run --init` does, hands on the signals it gets, and ends as that one does.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

HANDED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def hand_over() -> None:
    """Returns in the process that is to do the work. If a signal ends that one, the status is 128 + its number."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # one that is ignored does not wait
    awaited = HANDED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # each waits until it is asked for below
    worker = os.fork()
    if not worker:
        os.setpgid(0, 0)  # else a terminal's Ctrl-C came twice
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(awaited)
        if number == signal.SIGCHLD:
            _end_with(worker)
        else:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(worker, number)


def _end_with(worker: int) -> None:
    """If it is among the children that have ended."""
    with suppress(ChildProcessError):  # there is none that runs
        ended = -1
        while ended:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == worker:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
