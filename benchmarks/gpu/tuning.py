"""The step `tune`: the operations that lose most in the tables of kernels, with every tile of theirs, and PyTorch."""

from __future__ import annotations

import shutil
from typing import Any

from .session import Session
from .tree import FOLDERS, ROOT, copy_to, fingerprint

TABLES = ROOT / "kernels" / "tuned"  # ships with the package
MOST = 24  # problems, those that lose most
SECONDS_A_PROBLEM = 10.0  # one process measures all of them
FASTER = 0.95  # of our time: then PyTorch's makes a problem worth measuring wherever it stands


def tune(session: Session) -> str:
    """Writes kernels/tuned/<gpu>.json, and the same file beside the results."""
    session.quiet()
    places = losing(session.results.entry["kernels"])
    if not places:
        return "there is no table of kernels: run headline or ours first, or resume a run that did"
    shards = session.at_a_time
    session.together("candidates", [{"places": places, "shard": index, "shards": shards} for index in range(shards)])
    found = session.work("tune", SECONDS_A_PROBLEM * len(places), places=places, tables=str(TABLES))
    problems = found.get("problems", [])
    if "failed" in found and not found.get("cut"):
        session.failures.append(f"tune: {found['failed']}")
    if not problems:
        return found.get("failed", "nothing was measured")
    shutil.copy(found["file"], session.results.path.parent)
    copy_to(session.site)
    session.results.stamp["source"] = fingerprint(*FOLDERS)  # what runs has changed
    changed = [one for one in problems if one["choice"] != one["rule"]]
    for one in changed:
        session.say(f"{one['problem']}: {one['choice']}, {one['gain'] or float('nan'):.2f}x the rule's {one['rule']}")
    return f"{len(problems)} of {len(places)} problems, {len(changed)} with another choice than the rule's"


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
