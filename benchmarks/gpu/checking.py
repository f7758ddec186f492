"""The step `check`: its processes share the operations, and one that crashes or hangs costs one operation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .session import Job, Session

PLACES = [["small-p16", 1], ["small-p16", 128], ["base-p16", 128], ["base-p16", 1]]
PLACES += [["tiny-p16", 1], ["small-p32", 1], ["tiny-p16", 128], ["small-p32", 128]]
OPERATION_SECONDS = 60.0  # after which it hangs: compiling takes seconds
LOOK_SECONDS = 0.1


@dataclass
class Shard:
    """Every `shards`-th operation, and the process that is at it."""

    index: int
    job: Job
    seen: int = 0  # rows of this process that are stored
    now: dict[str, Any] | None = None  # what it is checking, and since when
    since: float = field(default_factory=time.monotonic)


def check(session: Session) -> str:
    """Rows that hold from an earlier run are kept. A failure of one is a failure of the suite."""
    kept = [row["problem"] for row in session.results.entry["checks"] if session.kept(row)]
    done, count = set(kept), session.at_a_time

    def start(index: int) -> Shard:
        arguments = {"places": PLACES, "shard": index, "shards": count, "done": sorted(done)}
        return Shard(index, session.start("check", **arguments))

    def store(row: dict[str, Any]) -> None:
        done.add(row["problem"])
        session.results.put("checks", (row["problem"],), row)
        if "failed" in row:
            session.failures.append(f"check of {row['problem']}: {row['failed']}")
            session.say(session.failures[-1])

    def look(shard: Shard) -> dict[str, Any]:
        """Stores what is new."""
        so_far = shard.job.so_far()
        rows = so_far.get("rows", [])
        for row in rows[shard.seen :]:
            store(row)
        if so_far.get("now") != shard.now or len(rows) > shard.seen:
            shard.now, shard.since = so_far.get("now"), time.monotonic()
        shard.seen = len(rows)
        return so_far

    running = [start(index) for index in range(count)]
    while running and session.seconds_left > 0:
        time.sleep(LOOK_SECONDS)
        for shard in list(running):
            look(shard)
            hangs = shard.now is not None and time.monotonic() - shard.since > OPERATION_SECONDS
            if shard.job.process.running and not hangs:
                continue
            running.remove(shard)
            ended = shard.job.wait(0)
            so_far = look(shard)
            if "broken" not in so_far and "failed" in ended:
                if shard.now is None:  # it checked nothing, or everything
                    session.failures.append(f"check {shard.index}: {ended['failed']}")
                    continue
                store({**shard.now, "failed": ended["failed"]})
            if "broken" in so_far or "failed" in ended:
                running.append(start(shard.index))
    for shard in running:
        shard.job.wait(0)
        look(shard)
    return _outcome(session, len(kept), cut=bool(running))


def _outcome(session: Session, kept: int, cut: bool) -> str:
    rows = [row for row in session.results.entry["checks"] if session.kept(row) or "failed" in row]
    failed = sum("failed" in row for row in rows)
    if cut:
        session.left.append("some operations of check")
    return f"{len(rows)} operations, {failed} failed, {kept} of them kept" + ", cut short" * cut
