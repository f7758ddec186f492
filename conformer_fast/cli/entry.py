"""What `conformer-fast` starts. It imports next to nothing, so that Ctrl-C is one line from the start."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ..engines.ctrl_c import RAISING
from .asked import asks_for_json


def run() -> int:
    """Runs the command of sys.argv and returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        RAISING.add(_interrupt)
        signal.signal(signal.SIGINT, _interrupt)
    if os.getpid() == 1:
        from .first_process import hand_over

        try:
            hand_over()
        except KeyboardInterrupt:
            _end()
    from .main import main

    status = main()
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to say while Python ends
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; in the middle of an import, which may swallow it or abort, it ends the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> None:
    if asks_for_json(sys.argv):
        os.write(1, b'{"command": null, "error": {"type": "KeyboardInterrupt", "message": "interrupted"}}\n')
    os.write(2, b"conformer-fast: interrupted\n")
    os._exit(130)
