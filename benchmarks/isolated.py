"""A peer in a process of its own, which is stopped while others run.

Threads of PyTorch and of ONNX Runtime spin for a while after their work, and would take the cores from who runs next.
Of two calls the second is timed: before the first, the caches held others' weights and its threads slept.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

import conformer_fast as cf
from conformer_fast.engines.timing import seconds_of
from conformer_fast.model.distance import relative_error

from .peers import PEERS


class PeerError(Exception):
    """A peer cannot run the model. Its message is the peer's own, in a line."""


class Clock:
    """Goes on by what peers' own clocks say that their calls took."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def running(self, peer: Isolated) -> Callable[..., None]:
        """A call of this peer, whatever it is given."""

        def run(*arguments: object) -> None:
            self._now += peer.seconds()

        return run


class Isolated:
    """One of PEERS, set up for a variant with random weights and a batch of noise. A context manager.

    error: of its logits, relative to the reference's

    Raises PeerError.
    """

    def __init__(self, implementation: str, variant: str, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, implementation, variant, batch, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        atexit.register(self.close)  # or Python would wait at its end for a process that is stopped
        theirs.close()
        self.error: float = self._answer()

    def seconds(self) -> float:
        """Of one call, behind another one, by its own clock."""
        self._signal(signal.SIGCONT)
        self._pipe.send(True)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise PeerError(f"its process ended with {self._process.exitcode}") from None
        if isinstance(answer, str):
            self.close()
            raise PeerError(answer)
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._pid, os.WSTOPPED)
        return answer

    @property
    def _pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, implementation: str, variant: str, batch: int, threads: int) -> None:
    """In its process: sends its error when it is set up, or what it fails by, and then the seconds of each call."""
    torch.set_num_threads(threads)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.inference_mode():
        try:
            model = cf.create_model(variant)
            run = PEERS[implementation].build(model, images)
            pipe.send(relative_error(run(images).float(), model(images).logits))
        except Exception as error:  # whatever a peer fails by is its result
            lines = str(error).strip().splitlines() or [""]
            pipe.send(f"{type(error).__name__}: {lines[-1][:200]}")
            return
        while pipe.recv():
            run(images)
            pipe.send(seconds_of(run, images))
