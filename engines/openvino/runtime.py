"""OpenVINO, imported without its telemetry, which would write into the home folder, start a process and call out.

A program that wants that imports openvino itself before its first engine is made.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Inside, the package of Intel's telemetry cannot be imported; what asks for it goes on without."""
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]


with without_telemetry():
    import openvino as ov

__all__ = ["core", "keep_for_good", "ov"]
_process = os.getpid()


@cache
def core() -> ov.Core:
    """OpenVINO's entry point, one for the process and never closed.

    Where the CPU has AMX, it gives the thread that first uses it a stack for signals, and takes that away when it is
    closed: the next signal, Ctrl-C say, would then end the process with a segmentation fault. In a forked process not
    even when Python ends: it would wait for threads that are the parent's.
    """
    opened = ov.Core()
    if os.getpid() != _process:
        keep_for_good(opened)
    return opened


def keep_for_good(thing: Any) -> None:
    """Also when Python ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    """In the child, whose engines need a Core with threads of its own."""
    if core.cache_info().currsize:
        keep_for_good(core())
        core.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
