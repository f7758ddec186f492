"""The progress bar of everything that takes long."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from time import monotonic
from typing import Any, ClassVar, TextIO
from weakref import WeakSet

from tqdm import tqdm

SECONDS = 30.0  # from line to line where the error output is no terminal
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class Bar(tqdm):
    """A bar on the error output, if that is a terminal, gone when it is closed; elsewhere, such as on a pipe or in a
    file, a line every 30 seconds, and none of what takes less. A context manager.

    tqdm's own lock is one for all processes that were forked from each other. One that is killed while it holds it,
    which it does for a moment to make even a bar that is not shown, would stop the others for ever. This lock is its
    process's own, and a new one after a fork. tqdm's thread, which redraws bars that stand still, is not started. Nor
    has a line one: it is printed by `update`, so what stands still prints none.
    """

    monitor_interval = 0
    _lock = threading.RLock()
    _instances: ClassVar[WeakSet[tqdm]] = WeakSet()

    def __init__(
        self, what: str, total: float | None, unit: str = "", *, done: int = 0, shown: bool = True, **layout: Any
    ) -> None:
        """total: None if it is not known. done: how far it is at the start. layout: other options of tqdm."""
        is_bar = shown and _is_terminal(sys.stderr)
        super().__init__(
            desc=what, total=total, unit=unit, initial=done, disable=not is_bar, leave=False, miniters=1, **layout
        )
        self._in_lines = shown and not is_bar
        form = None if total is None else LINE
        self._facts = {"prefix": what, "total": total, "unit": unit, "initial": done, **layout, "bar_format": form}
        self._start = self._said = monotonic()

    def update(self, n: float | None = 1) -> bool | None:
        """So much more is done."""
        if self._in_lines:
            self.n += n or 0
            now = monotonic()
            if now - self._said >= SECONDS and sys.stderr:  # print takes None for the standard output
                self._said = now
                line = self.format_meter(round(self.n, 2), elapsed=now - self._start, **self._facts)
                with suppress(OSError, ValueError):  # nobody reads it, which stops no work
                    print(line, file=sys.stderr, flush=True)
        return super().update(n)


def _is_terminal(stream: TextIO | None) -> bool:
    """Programs without a window have no error output, or have closed it."""
    return stream is not None and not stream.closed and stream.isatty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
