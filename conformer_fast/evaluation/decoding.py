"""Pictures decoded by several processes, in the order that is asked for.

Each process has a pipe of its own, whose other end nobody else holds: when one side ends, however that comes, the other
is told at once. Pixels go through the pipe, so nothing needs shared memory, of which containers have little.

It is our own because PyTorch's DataLoader passes pictures through shared memory and one pipe for all processes: a full
one, or one that a killed process was writing to, is waited for without end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from typing import Any, NoReturn

import torch

from ..datasets.dataset import PictureSet
from ..extension import unusable, warn_without
from .decode import Decoded, decode
from .worker import work

MOST_WORKERS = 16  # unless more are asked for
AHEAD = 2  # groups that a process knows of
PATIENCE = 5.0  # seconds until a process that does not end is killed


def decoded(
    dataset: PictureSet, size: int, groups: Sequence[Sequence[int]], workers: int
) -> Generator[Decoded, None, None]:
    """The groups of pictures, in order. workers: processes; 0: this one decodes.

    The processes are spawned: this one may have threads and a GPU. They end when this iterator is closed, and when this
    process ends. Raises OSError when one of them ends before.
    """
    if not workers or not groups:
        for group in groups:
            yield decode(dataset, size, group)
        return
    if unusable():
        warn_without()
    workers = min(workers, len(groups))
    with _started(workers) as started:
        for worker in started:
            worker.send((dataset, size))
        for number, group in enumerate(groups[: AHEAD * workers]):
            started[number % workers].send(group)
        for number in range(len(groups)):
            worker = started[number % workers]
            found = worker.receive()
            following = number + AHEAD * workers
            if following < len(groups):
                worker.send(groups[following])
            yield found


def usual_workers(device: torch.device) -> int:
    """How many processes decode for a model on `device`. Where it runs on the CPU too, decoding takes a small part of
    its time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores if device.type == "cuda" else max(1, cores // 4))


class _Worker:
    """A process that decodes, and our end of its pipe."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True)
        try:
            with _interrupts_held():  # Ctrl-C is for this process, which then ends the others
                self._process.start()
        except OSError as error:
            self._refuse(error)
        finally:
            theirs.close()

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            self._refuse(error)

    def receive(self) -> Decoded:
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._refuse(error)

    def end(self) -> None:
        self._pipe.close()
        if self._process.pid is not None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process.pid is not None:
            self._process.join(PATIENCE)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()

    def _refuse(self, error: Exception) -> NoReturn:
        if self._process.pid is not None:
            self._process.join(PATIENCE)
        code = self._process.exitcode if self._process.pid is not None else None
        how = f"by signal {-code}" if code and code < 0 else f"with status {code}"
        raise OSError(
            f"a decoding process ended {how}; if memory ran out, use fewer workers or a smaller batch; a program must "
            f'guard what it runs by `if __name__ == "__main__":`; 0 workers need no process'
        ) from error


@contextmanager
def _started(count: int) -> Iterator[list[_Worker]]:
    """Processes that end with the block."""
    workers: list[_Worker] = []
    try:
        while len(workers) < count:
            workers.append(_Worker())
        yield workers
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.wait()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started inside never see Ctrl-C; this one sees it at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # when it starts, it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
