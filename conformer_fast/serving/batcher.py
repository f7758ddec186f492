"""Batches: what several clients ask for at once runs together.

A worker that is free takes what is queued, up to `most` images of one shape and type, and never waits for more: a
client alone gets the speed of a batch of one. Only while another worker runs may it wait, `delay` seconds at most from
when the oldest came. An entry that is cancelled while it waits is left out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor


class StoppingError(Exception):
    """The server is stopping and takes nothing new."""


@dataclass(frozen=True)
class Answer:
    """outputs: one tensor (n, ...) for each output, of the n images that were asked for. batch: images that ran
    together. queued, ran: seconds that they waited, and that the batch took."""

    outputs: tuple[Tensor, ...]
    batch: int
    queued: float
    ran: float


@dataclass
class _Entry:
    images: Tensor
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


def _kind(entry: _Entry) -> tuple[torch.dtype, torch.Size]:
    """What images that run together have in common: pixels as uint8 are no normalized numbers."""
    return entry.images.dtype, entry.images.shape[1:]


class Batcher:
    """run:   images (B, C, H, W) -> a tensor (B, ...) for each output, from any thread
    most:  images that run together
    delay: seconds
    """

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], most: int, delay: float = 0.005) -> None:
        self._run, self._most, self._delay = run, most, delay
        self._entries: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closed, self._busy = False, 0
        self._threads: list[threading.Thread] = []

    def start(self, workers: int = 1) -> None:
        """workers: batches that run at a time, each in a thread of its own"""
        self._threads = [threading.Thread(target=self._work, name="batches", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, images: Tensor) -> Future[Answer]:
        """The answer for some images (n, C, H, W), n at most `most`. Raises StoppingError after `close`."""
        entry = _Entry(images)
        with self._changed:
            if self._closed:
                raise StoppingError("the server is stopping; ask again in a while")
            self._entries.append(entry)
            self._changed.notify()
        return entry.future

    @property
    def waiting(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._waiting()

    def close(self, patience: float) -> None:
        """Takes nothing new, and returns when what waits has run, after `patience` seconds at the latest."""
        until = time.monotonic() + patience
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._answer(batch)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()  # who waited for more while this ran no longer does

    def _answer(self, batch: Sequence[_Entry]) -> None:
        start = time.monotonic()
        sizes = [len(entry.images) for entry in batch]
        try:
            with torch.inference_mode():
                outputs = self._run(torch.cat([entry.images for entry in batch]))
            parts = list(zip(*(output.split(sizes) for output in outputs), strict=True))
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one may have spoiled it for the others
                for entry in batch:
                    self._answer([entry])
            return
        ran = time.monotonic() - start
        for entry, part in zip(batch, parts, strict=True):
            entry.future.set_result(Answer(part, sum(sizes), start - entry.since, ran))

    def _next(self) -> list[_Entry] | None:
        """What runs next, and this worker counts as busy; None once all is closed and done."""
        with self._changed:
            while True:
                self._entries = deque(entry for entry in self._entries if not entry.future.cancelled())
                if self._entries:
                    left = self._entries[0].since + self._delay - time.monotonic()
                    if self._busy and left > 0 and not self._closed and self._waiting() < self._most:
                        self._changed.wait(left)
                    elif batch := self._taken():
                        self._busy += 1
                        return batch
                elif self._closed:
                    return None
                else:
                    self._changed.wait()

    def _waiting(self) -> int:
        return sum(len(entry.images) for entry in self._entries if not entry.future.cancelled())

    def _taken(self) -> list[_Entry]:
        """The oldest entry and, in order, those of its kind that fit beside it."""
        batch: list[_Entry] = []
        others: deque[_Entry] = deque()
        free = self._most
        for entry in self._entries:
            if len(entry.images) > free or (batch and _kind(entry) != _kind(batch[0])):
                others.append(entry)
            elif entry.future.set_running_or_notify_cancel():
                batch.append(entry)
                free -= len(entry.images)
        self._entries = others
        return batch
