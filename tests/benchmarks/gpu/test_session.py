"""A session of the GPU suite: what a step leaves however it ends, and what hangs."""

import sys
import time

import pytest
from pretended_session import Shard

from benchmarks.gpu.session import Session


def test_a_step_leaves_a_row_however_it_ends(start):
    session = start()
    seen = []

    def look(session):
        seen.append(dict(session.results.find("steps", ("good",))))
        session.failures.append("one")
        return "done"

    session.step("good", 100, look)
    assert seen[0]["failed"] == "the suite was killed while this ran"  # what would stand there if it were
    row = session.results.find("steps", ("good",))
    assert (row["outcome"], row["failures"], "failed" in row) == ("done", 1, False)
    session.step("bad", 100, lambda session: 1 / 0)
    assert session.results.find("steps", ("bad",))["failed"] == "ZeroDivisionError: division by zero"
    with pytest.raises(SystemExit):
        session.step("ended", 100, lambda session: sys.exit(143))
    assert session.results.find("steps", ("ended",))["failed"] == "the suite was ended while this ran"
    session.say = sys.exit  # a signal when its first line is printed
    with pytest.raises(SystemExit):
        session.step("begun", 100, look)
    assert session.results.find("steps", ("begun",))["failed"] == "the suite was ended while this ran"
    session.say = print
    session.end = time.monotonic()
    session.step("late", 100, look)
    assert session.results.find("steps", ("late",))["outcome"] == "no time left"
    assert session.left == ["late"]


def test_compiling_that_hangs_costs_its_own_time(start):
    session = start()
    jobs = [Shard([{}], hangs=True) for _ in range(3)]
    begun = iter(jobs)
    session.start = lambda task, **arguments: next(begun)
    assert len(Session.together(session, "build", [{}] * 3, most=2, seconds=0.1)) == 2
    assert [job.process.running for job in jobs] == [False, False, True]  # the third was not begun
