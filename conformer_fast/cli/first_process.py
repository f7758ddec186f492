"""The first process of a container: no signal ends it that it has no handler for, and orphans become its children.

So it leaves the work to another, as `docker run --init` does, hands on the signals it gets, and ends as that one does.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType


def hand_over() -> None:
    """Returns in the process that is to do the work. If a signal ends that one, the status is 128 + its number."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is who they are for
    worker = os.fork()
    if not worker:
        os.setpgid(0, 0)  # else a terminal's Ctrl-C came twice
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(worker, number)

    for number in signals:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ended = 0
    while ended != worker:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
