"""What a run consists of, in the order of its worth: if the next step hangs, what is known is worth the most it can be.

Nothing of ours is imported here: only the processes that are started have it installed. A step returns its outcome in
a line; what failed in it is in the session's failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import checking, profiling, pytest_runs, tuning
from .results import Key
from .session import PEERS, POINT_SECONDS, Session

VARIANTS = ("tiny-p16", "small-p32", "small-p16", "base-p16")
BATCHES = (1, 8, 32, 128)
QUANTIZED = {"ours int8": "int8", "ours fp8": "fp8"}
AUTOTUNE = PEERS[-1]
SECONDS = {"torch.compile": 120.0, AUTOTUNE: 300.0}  # for a point of those that compile long
FIRST = [("small-p16", 128), ("small-p16", 1)]  # where we must be fast, before all others
THEN = ("base-p16", 128)
TABLE_SECONDS = 120.0  # for a table of kernels
BUILD_SECONDS = 90.0
ASSUMED = {  # until they are measured: an H100's, some 90 % of its memory's data sheet and 80 % of its products'
    "bytes_per_second": 3.0e12,
    "l2_bytes": 25e6,
    "l2_bytes_per_second": 5.5e12,
    "flops_per_second": {"fp16": 790e12, "int8": 1550e12, "fp8": 1550e12},
    "gap": 1.3e-6,
    "dependent_gap": 0.8e-6,
}


@dataclass(frozen=True)
class Step:
    """about: for the reader. seconds: at most, of a run that has more."""

    about: str
    run: Callable[[Session], str]
    seconds: float = math.inf


def check(session: Session) -> str:
    """Meanwhile torch.compile compiles what `headline` measures, and we what the sanitizers watch, with the time that
    is left of all cores."""
    if session.missing("tests", [("compute-sanitizer memcheck",)]):
        session.background.append(session.start("sanitize", nice=True))
    for variant, batch in FIRST:
        if session.missing("points", [("torch.compile", variant, batch)]):
            warm = session.start("warm", nice=True, implementation="torch.compile", variant=variant, batch=batch)
            session.background.append(warm)
    return checking.check(session)


def ceilings(session: Session) -> str:
    if "ceilings" in session.results.entry:
        return "kept"
    session.quiet()
    found = session.work("facts")
    session.results.update({name: value for name, value in found.items() if name in ("ceilings", "products")})
    if "failed" in found:
        session.failures.append(f"ceilings: {found['failed']}")
        return found["failed"]
    return f"{found['ceilings']['bytes_per_second'] / 1e12:.2f} TB/s"


def headline(session: Session) -> str:
    session.quiet()
    failures = len(session.failures)
    for place in FIRST:
        _points(session, [("ours", *place)])
        _tables(session, [(*place, "fp16")])
    _points(session, [(peer, *place) for peer in ("torch.compile", "eager") for place in FIRST])
    _points(session, [("ours", *THEN)])
    return _outcome(session, failures)


def tune(session: Session) -> str:
    """Where there is no table of kernels yet, after one. Then ours again where it counts, with what was found: of
    another source now, it is missing."""
    if not tuning.losing(session.results.entry["kernels"]):
        headline(session)
    found = tuning.tune(session)
    headline(session)
    return found


def ours(session: Session) -> str:
    """All points in 16 bits, then the table of kernels for each."""
    return _own(session, {"ours": "fp16"})


def quantized(session: Session) -> str:
    """The same in the 8 bits that this GPU multiplies, beside ours in 16."""
    there = _ceilings(session)["flops_per_second"]
    return _own(session, {name: precision for name, precision in QUANTIZED.items() if precision in there})


def peers(session: Session) -> str:
    """eager and torch.compile at each point, beside ours."""
    return _beside(session, [peer for peer in PEERS if peer != AUTOTUNE])


def autotune(session: Session) -> str:
    return _beside(session, [AUTOTUNE])


STEPS = {
    "check": Step("every different operation of the four variants at batch 1 and 128 against float64", check, 120),
    "executor": Step("the executor's quick tests", pytest_runs.executor, 60),
    "ceilings": Step("what the machine reaches, alone on it", ceilings, 120),
    "headline": Step("small-p16 at 128 and 1: ours, its kernels, torch.compile, eager; base-p16 at 128", headline),
    "ncu": Step("the four heaviest kernels under the profiler", profiling.ncu, 75),
    "memcheck": Step("every kernel under compute-sanitizer", profiling.memcheck, 90),
    "racecheck": Step("the same for races: a lead, not a verdict", profiling.racecheck, 90),
    "ours": Step("all points in fp16, and their kernels", ours),
    "tests": Step("all test files that use a GPU", pytest_runs.everything),
    "peers": Step("eager and torch.compile at all points", peers),
    "quantized": Step("int8 and fp8 at all points, and their kernels", quantized),
    "autotune": Step("torch.compile max-autotune at all points", autotune),
    "tune": Step("tiles for what loses most in the tables that there are; not part of a whole run", tune),
}
WHOLE = [name for name in STEPS if name != "tune"]


def _ceilings(session: Session) -> dict[str, Any]:
    return session.results.entry.get("ceilings", ASSUMED)


def _assumed(session: Session) -> dict[str, Any]:
    return {} if "ceilings" in session.results.entry else {"ceilings": "assumed"}


def _points(session: Session, keys: Sequence[Key], again: bool = False) -> None:
    """Measures those that are missing; with `again`, then the one measured longest ago once more: another figure for
    the same point shows how far to trust."""

    def measure(key: Key) -> None:
        implementation, variant, batch = key
        arguments = {"implementation": implementation, "variant": variant, "batch": batch}
        seconds = SECONDS.get(str(implementation), POINT_SECONDS)
        row = session.work("point", seconds, **arguments, ceilings=_ceilings(session))
        session.put("points", key, row | _assumed(session), may_fail=implementation in PEERS)

    session.each(_due(session, "points", keys, again), measure)


def _tables(session: Session, keys: Sequence[Key], again: bool = False) -> None:
    def measure(key: Key) -> None:
        variant, batch, precision = key
        arguments = {"variant": variant, "batch": batch, "precision": precision}
        row = session.work("kernels", TABLE_SECONDS, **arguments, ceilings=_ceilings(session))
        session.put("kernels", key, row | _assumed(session))

    session.each(_due(session, "kernels", keys, again), measure)


def _due(session: Session, section: str, keys: Sequence[Key], again: bool) -> list[Key]:
    kept = {key: row for key in keys if (row := session.kept_row(section, key))}
    oldest = [min(kept, key=lambda key: kept[key]["date"])] if kept and again else []
    return [key for key in keys if key not in kept] + oldest


def _own(session: Session, precisions: Mapping[str, str]) -> str:
    session.quiet()
    failures = len(session.failures)
    places = _places(session)
    points: list[Key] = [(name, *place) for place in places for name in precisions]
    tables: list[Key] = [(*place, precision) for place in places for precision in precisions.values()]
    wanted = {(*place, precisions[str(name)]) for name, *place in session.missing("points", points)}
    _build(session, wanted | set(session.missing("kernels", tables)))
    _points(session, points, again=True)
    _tables(session, tables, again=True)
    return _outcome(session, failures)


def _beside(session: Session, names: Collection[str]) -> str:
    session.quiet()
    failures = len(session.failures)
    points: list[Key] = [(name, *place) for place in _places(session) for name in names]
    _build(session, {(*place, "fp16") for _, *place in session.missing("points", points)})
    _points(session, points, again=True)
    return _outcome(session, failures)


def _places(session: Session) -> list[tuple[str, int]]:
    return [(variant, batch) for variant in session.variants for batch in session.batches]


def _build(session: Session, keys: Collection[Key]) -> None:
    """Compiles our kernels for these variants, batches and precisions; a failure will show where they are used."""
    names = ("variant", "batch", "precision")
    arguments = [dict(zip(names, key, strict=True)) for key in sorted(keys)]
    session.together("build", arguments, session.at_a_time, BUILD_SECONDS)


def _outcome(session: Session, failures: int) -> str:
    """failures: how many there were before."""
    failed = len(session.failures) - failures
    parts = [f"{failed} failed"] * bool(failed) + [f"{len(session.left)} left"] * bool(session.left)
    return ", ".join(parts) or "complete"
