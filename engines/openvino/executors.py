"""OpenVINO's threads. Those of an engine that is gone wait for the next one with the same options.

After a fork they are missing, and an engine that is given them waits for ever.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping

from conformer_fast.errors import ConformerFastError

from .device import CPU
from .runtime import core, keep_for_good, ov

Key = tuple[str, str]

_lock = threading.RLock()  # an engine may go at any time, also while this thread has it
_live: Counter[Key] = Counter()
_most: Counter[Key] = Counter()  # that were live at once: so many groups of threads there are
_kept: list[ov.CompiledModel] = []
_process = os.getpid()
_left_behind: int | None = None  # the process that this one was forked from while threads were waiting there


def key_of(options: Mapping[str, str]) -> Key:
    """What engines have in common that may have each other's threads."""
    return options.get("NUM_STREAMS", ""), options.get("INFERENCE_NUM_THREADS", "")


def take(key: Key) -> None:
    """To be called before an engine is made. Raises ConformerFastError where it would wait for ever."""
    if _left_behind is not None:
        raise ConformerFastError(
            f"process {os.getpid()} was forked from {_left_behind}, where OpenVINO's engines have run and gone: their "
            f"threads are not here; start processes by 'spawn', or fork before engines are made"
        )
    with _lock:
        _live[key] += 1
        _most[key] = max(_most[key], _live[key])


def give_back(key: Key) -> None:
    """To be called when it is gone."""
    with _lock:
        _live[key] -= 1


def compile_for_good(model: ov.Model, options: Mapping[str, str]) -> ov.CompiledModel:
    """A small engine for a question to this CPU. It stays, or its threads would wait for the next one, which no forked
    process may have."""
    take(key_of(options))
    try:
        compiled = core().compile_model(model, CPU, dict(options))
    except BaseException:
        give_back(key_of(options))
        raise
    _kept.append(compiled)
    return compiled


def _after_fork() -> None:
    """In the child."""
    keep_for_good(_kept)
    global _lock, _process, _left_behind
    _lock = threading.RLock()
    if any(most > _live[key] for key, most in _most.items()):
        _left_behind = _process
    _live.clear()
    _most.clear()
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
