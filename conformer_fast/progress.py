"""The progress bar of everything that takes long."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, ClassVar, TextIO
from weakref import WeakSet

from tqdm import tqdm


class Bar(tqdm):
    """A bar on the error output, if that is a terminal, gone when it is closed; elsewhere nothing. A context manager.

    tqdm's own lock is one for all processes that were forked from each other. One that is killed while it holds it,
    which it does for a moment to make even a bar that is not shown, would stop the others for ever. This lock is its
    process's own, and a new one after a fork. tqdm's thread, which redraws bars that stand still, is not started.
    """

    monitor_interval = 0
    _lock = threading.RLock()
    _instances: ClassVar[WeakSet[tqdm]] = WeakSet()

    def __init__(
        self, what: str, total: float | None, unit: str = "", *, done: int = 0, shown: bool = True, **layout: Any
    ) -> None:
        """total: None if it is not known. done: how far it is at the start. layout: other options of tqdm."""
        quiet = not (shown and _is_terminal(sys.stderr))
        super().__init__(
            desc=what, total=total, unit=unit, initial=done, disable=quiet, leave=False, miniters=1, **layout
        )


def _is_terminal(stream: TextIO | None) -> bool:
    """Programs without a window have no error output, or have closed it."""
    return stream is not None and not stream.closed and stream.isatty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
