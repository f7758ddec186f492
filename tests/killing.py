"""Processes that are killed at random moments. Run where nothing has threads yet, as they are forked."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

Work = Callable[[int], None]
"""What a process does, given a seed."""
Seen = Callable[[int], str]
"""What a process was doing, given its number when it is dead."""
NICE = 10  # so that who kills comes in time


def storm(
    working: Sequence[Work], reading: Sequence[Work], kills: int, busy: Callable[[int], bool], seen: Seen
) -> Counter[str]:
    """Kills one after another of those who work, if possible one who is busy; others are started in their place.

    Nobody ends by himself, or it is an error. Returns how many of the killed were doing what.
    """
    choice, found = random.Random(0), Counter[str]()
    readers = [_started(work, seed, NICE) for seed, work in enumerate(reading)]
    workers = [_started(work, seed, NICE) for seed, work in enumerate(working)]
    try:
        for kill in range(kills):
            time.sleep(choice.uniform(0, 0.03))  # any moment will do
            victim = choice.randrange(len(workers))
            victim = next((number for number, worker in enumerate(workers) if busy(worker)), victim)
            child, workers[victim] = workers[victim], 0
            if not _killed(child):
                sys.exit(1)  # it has said why
            found[seen(child)] += 1
            workers[victim] = _started(working[victim], len(workers) + kill, NICE)
    finally:
        alive = [_killed(child) for child in (*readers, *workers) if child]
    return found if all(alive) else sys.exit(1)


def until_it_ends(work: Work, longest: float, seen: Seen) -> Counter[str]:
    """Starts it again and again, and kills it after up to `longest` seconds, until it has ended. A little later each
    time, or it would never end where others take the processor."""
    choice, found = random.Random(), Counter[str]()
    while True:
        child, end = _started(work, 0), time.monotonic() + choice.uniform(0, longest)
        ended = status = 0
        while not ended and time.monotonic() < end:
            time.sleep(0.001)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            return found if status == 0 else sys.exit(1)  # it has said why
        found[seen(child)] += 1
        longest *= 1.05


def alone(work: Work, seed: int = 0) -> bool:
    """Whether a process that does this work was killed; it must end well otherwise."""
    status = os.waitpid(_started(work, seed), 0)[1]
    return os.WIFSIGNALED(status) or (sys.exit(1) if status else False)  # it has said why


def _started(work: Work, seed: int, nice: int = 0) -> int:
    child = os.fork()
    if child:
        return child
    os.nice(nice)
    status = 1
    try:
        work(seed)
        status = 0
    except BaseException as error:
        print(f"{work.__name__}: {type(error).__name__}: {error}", flush=True)
    os._exit(status)


def _killed(child: int) -> bool:
    """Whether it was still at work."""
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
