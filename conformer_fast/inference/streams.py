"""A second CUDA stream for work that does not depend on what is issued next.

The inference model says where such work is (`beside`) and where its results are needed (`join`); whether it runs on a
second stream is up to who runs the model (`side_stream`). Otherwise both do nothing.

No tensor needs `record_stream`: the model keeps what the side stream reads until after the next `join`, and the side
stream waits for the main one before it writes into memory that the main one has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

TWO_STREAMS = 8  # the largest batch whose independent branches run side by side: a larger one fills the GPU by itself

_side: ContextVar[torch.cuda.Stream | None] = ContextVar("side", default=None)


@contextmanager
def side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside, in this thread, `beside` runs its body on `stream`; with None in line."""
    token = _side.set(stream)
    try:
        yield
    finally:
        _side.reset(token)


@contextmanager
def beside() -> Iterator[None]:
    """Runs its body behind what has been issued so far and beside what is issued next, until `join`."""
    side = _side.get()
    if side is None:
        yield
        return
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield


def join() -> None:
    """What is issued next waits for the bodies of `beside`."""
    side = _side.get()
    if side is not None:
        torch.cuda.current_stream().wait_stream(side)
