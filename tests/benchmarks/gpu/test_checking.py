"""The GPU suite's step `check`, with pretended processes: an operation that fails costs that one."""

import pytest
from pretended_session import Pretended, Shard

from benchmarks.gpu import checking, tables


def row(problem, **more):
    return {"variant": "tiny-p16", "batch": 1, "problem": problem, "error": 1e-4, "bound": 1e-3, **more}


def now(problem):
    return {"variant": "tiny-p16", "batch": 1, "problem": problem}


@pytest.fixture
def check(start, monkeypatch):
    monkeypatch.setattr(checking, "LOOK_SECONDS", 0)
    monkeypatch.setattr(checking, "OPERATION_SECONDS", 0.05)
    monkeypatch.setattr(Pretended, "at_a_time", 1)

    def check(*shards, **options):
        session, started = start(**options), []
        session.shards = iter(shards)

        def begin(task, nice=False, **arguments):
            started.append(arguments["done"])
            return next(session.shards)

        session.start = begin
        return session, checking.check(session), started

    return check


def test_each_checked_operation_is_a_row(check):
    session, outcome, started = check(
        Shard(
            [{}, {"rows": [], "now": now("a")}, {"rows": [row("a")], "now": now("b")}, {"rows": [row("a"), row("b")]}]
        )
    )
    assert outcome == "2 operations, 0 failed, 0 of them kept"
    assert [one["problem"] for one in session.results.entry["checks"]] == ["a", "b"]
    assert started == [[]]
    _, outcome, started = check(Shard([{"rows": [row("c")]}]))
    assert started == [["a", "b"]]
    assert outcome == "3 operations, 0 failed, 2 of them kept"
    _, _, started = check(Shard([{"rows": []}]), source="s2")
    assert started == [[]]  # of other code


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (Shard([{"rows": [row("a")], "now": now("b")}], failed="died of SIGSEGV: oh"), "died of SIGSEGV: oh"),
        (Shard([{"rows": [row("a")], "now": now("b")}], hangs=True), "stopped after 45 s"),
        (Shard([{"rows": [row("a"), row("b", failed="illegal address")], "broken": True}]), "illegal address"),
        (
            Shard(
                [{"rows": [row("a"), row("b", failed="illegal address")], "broken": True}], failed="died of SIGABRT: x"
            ),
            "illegal address",
        ),
    ],
    ids=["crash", "hang", "broken GPU", "broken GPU that crashes at its end"],
)
def test_what_one_operation_does_costs_that_one(first, why, check):
    session, outcome, started = check(first, Shard([{"rows": [row("c")]}]))
    assert started == [[], ["a", "b"]]
    assert outcome == "3 operations, 1 failed, 0 of them kept"
    assert session.results.find("checks", ("b",))["failed"] == why
    assert session.failures == [f"check of b: {why}"]
    printed = tables.everything(session.results.entry, "s1")
    assert "checks: 2 of 3 operations are within their bounds; nearest: 0.10 of it, a" in printed
    assert f"  b: {why}" in printed


def test_a_process_that_does_not_begin_is_not_started_again(check):
    session, outcome, started = check(Shard([{}], failed="exit status 1: no torch"))
    assert (outcome, started) == ("0 operations, 0 failed, 0 of them kept", [[]])
    assert session.failures == ["check 0: exit status 1: no torch"]


def test_a_process_may_take_long_to_begin(check):
    """A machine that has just started reads PyTorch from its disk."""
    session, outcome, _ = check(Shard([{}] * 2000 + [{"rows": [row("a")]}]))
    assert (outcome, session.failures) == ("1 operations, 0 failed, 0 of them kept", [])


def test_check_is_cut_by_the_time(check):
    session, outcome, _ = check(Shard([{"rows": [row("a")], "now": now("b")}]), seconds=0)
    assert outcome == "1 operations, 0 failed, 0 of them kept, cut short"
    assert session.left == ["some operations of check"]
