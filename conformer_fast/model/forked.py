"""What a fork leaves of PyTorch: its threads stay behind in the parent, and the child would wait for them for ever."""

from __future__ import annotations

import os
import warnings

import torch

_computed_in: int | None = None  # the process where PyTorch has computed for us


def before_computing() -> None:
    """To be called before PyTorch computes on the CPU.

    In the child of a process where it has, PyTorch is set to one thread, with a warning.
    """
    global _computed_in
    here = os.getpid()
    parent, _computed_in = _computed_in, here
    if parent not in (None, here) and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            f"process {here} was forked from {parent}, where PyTorch has run: its threads are not here, so it computes "
            f"on one from now on; for all of them, fork before PyTorch runs, or start processes by 'spawn'",
            stacklevel=2,
        )
