"""Ctrl-C where KeyboardInterrupt, raised in the middle, would be lost or break what runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

RAISING: set[Any] = {signal.default_int_handler}
"""The handlers that raise KeyboardInterrupt: any other is the program's own, and stays."""


@contextmanager
def ctrl_c_calls(pressed: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls `pressed` instead, if this is the main thread and the program has no handler of its own."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler not in RAISING:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: pressed())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
