"""The step `tune`: the operations that lose most in the tables of kernels, with every tile of theirs, and PyTorch."""

from __future__ import annotations

import shutil
from typing import Any

from .session import Session
from .tree import FOLDERS, ROOT, commit, copy_to, fingerprint

TABLES = ROOT / "kernels" / "tuned"  # ships with the package
MOST = 24  # problems, those that lose most
GIB_A_PROCESS = 4  # that compiles candidates
COMPILING = 0.4  # of the time, at most
AGAIN_SECONDS = 75.0  # to measure ours again
FASTER = 0.95  # of our time: then PyTorch's makes a problem worth measuring wherever it stands


def tune(session: Session) -> str:
    """Writes kernels/tuned/<gpu>.json, and the same file beside the results."""
    session.quiet()
    places = losing(session.results.entry["kernels"])
    if not places:
        return "there is no table of kernels to tune by: headline or ours makes one"
    shards = session.fitting(GIB_A_PROCESS)  # all cores
    arguments = [{"places": places, "shard": index, "shards": shards} for index in range(shards)]
    session.together("candidates", arguments, shards, COMPILING * session.seconds_left)
    seconds = session.seconds_left - min(AGAIN_SECONDS, session.seconds_left / 2)
    found = session.work("tune", seconds, places=places, tables=str(TABLES))
    problems = found.get("problems", [])
    if not problems:
        session.failures.append(f"tune: {found.get('failed', 'nothing was measured')}")
        return session.failures[-1]
    shutil.copy(found["file"], session.results.path.parent)
    copy_to(session.site)
    session.results.stamp |= {"commit": commit(), "source": fingerprint(*FOLDERS)}  # what runs has changed
    changed = [one for one in problems if one["choice"] != one["rule"]]
    for one in changed:
        session.say(f"{one['problem']}: {one['choice']}, {one['gain'] or float('nan'):.2f}x the rule's {one['rule']}")
    why = f", then {found['failed']}" if "failed" in found else ""
    return f"{len(problems)} of {len(places)} problems, {len(changed)} with another choice than the rule's{why}"


def losing(tables: list[dict[str, Any]]) -> list[list[Any]]:
    """[variant, batch, precision, problem] of what loses most time against its floor in a run of its network, and of
    all that PyTorch runs faster."""
    rows: dict[str, tuple[float, bool, list[Any]]] = {}
    for table in tables:
        for one in table.get("operations", []):
            lost = one["count"] * (one["us"] - one["floor_us"])
            faster = one["choice"] != "pytorch" and one["pytorch_us"] < FASTER * one["us"]
            place = [table["variant"], table["batch"], table["precision"], one["problem"]]
            if one["problem"] not in rows or lost > rows[one["problem"]][0]:
                rows[one["problem"]] = lost, faster, place
    ordered = sorted(rows.values(), key=lambda row: -row[0])
    return [place for index, (_, faster, place) in enumerate(ordered) if index < MOST or faster]
