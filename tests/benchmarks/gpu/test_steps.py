"""The GPU suite's steps, on pretended measurements: what is kept, cut or fails. test_whole_suite.py runs real ones."""

from gpu_suite_samples import CEILINGS

from benchmarks.gpu import results, steps, tables


def test_ours_is_measured_again_when_the_code_changes(start):
    both = [("point", "ours", "tiny-p16", 1), ("point", "ours", "tiny-p16", 8)]
    tables_of_both = [("kernels", "tiny-p16", 1), ("kernels", "tiny-p16", 8)]
    first = start(batches=(1, 8))
    steps.ours(first)
    assert [asked for asked in first.asked if asked[0] == "build"] == [
        ("build", "tiny-p16", 1),
        ("build", "tiny-p16", 8),
    ]
    assert first.measured() == both + tables_of_both
    second = start(batches=(1, 8))
    steps.ours(second)
    assert second.asked == [both[0], tables_of_both[0]]  # the oldest once more
    changed = start("s2", batches=(1, 8))
    steps.ours(changed)
    assert changed.measured() == both + tables_of_both


def test_peers_are_kept_and_one_measured_again(start):
    first = start()
    first.failing = {"torch.compile"}
    steps.peers(first)
    assert [asked[1] for asked in first.measured()] == ["eager", "torch.compile"]
    assert first.failures == []  # of a peer it is a result
    second = start("s2")
    steps.peers(second)
    assert second.measured() == [("point", "eager", "tiny-p16", 1)]
    steps.autotune(third := start("s2"))
    assert third.measured() == [("point", "torch.compile max-autotune", "tiny-p16", 1)]


def test_a_peer_that_took_too_long_is_tried_again(start):
    key = ("eager", "tiny-p16", 1)
    for failure, missing in [({"stopped": True}, [key]), ({}, [])]:
        session = start()
        session.results.put("points", key, {"failed": "no figure", **failure})
        assert session.missing("points", [key]) == missing


def test_headline_is_small_at_128_and_1_then_what_is_beside_it(start):
    session = start()
    steps.headline(session)
    places = [("small-p16", 128), ("small-p16", 1)]
    own = [(task, *name, *place) for place in places for task, name in (("point", ("ours",)), ("kernels", ()))]
    peers = [("point", peer, *place) for peer in ("torch.compile", "eager") for place in places]
    assert session.asked == [*own, *peers, ("point", "ours", "base-p16", 128)]
    steps.headline(again := start("s2"))
    assert again.asked == [*own, ("point", "ours", "base-p16", 128)]


def test_8_bits_are_measured_where_there_are_such_products(start):
    steps.quantized(session := start())
    measured = [asked[1:] for asked in session.asked if asked[0] == "point"]
    assert measured == [("ours int8", "tiny-p16", 1), ("ours fp8", "tiny-p16", 1)]
    assert {row["precision"] for row in session.results.entry["kernels"]} == {"int8", "fp8"}
    (line,) = [
        line for line in tables.everything(session.results.entry, "s1").splitlines() if line.startswith("tiny-p16 B1 ")
    ]
    assert line.split()[-2:] == ["3.000", "4.000"]
    ampere = start("s2", ceilings={**CEILINGS, "flops_per_second": {"fp16": 270e12, "int8": 540e12}})
    steps.quantized(ampere)
    assert [asked[1:] for asked in ampere.asked if asked[0] == "point"] == [("ours int8", "tiny-p16", 1)]


def test_our_failure_is_a_failure(start):
    session = start()
    session.failing = {"ours"}
    steps.ours(session)
    assert session.failures == ["ours tiny-p16 1: RuntimeError: no luck"]
    steps.ours(again := start())
    assert ("point", "ours", "tiny-p16", 1) in again.asked  # not kept


def test_what_the_time_cuts_is_left_and_unknown(start):
    session = start()
    session.cutting = {"eager", "ours"}
    steps.peers(session)
    steps.ours(session)
    assert session.failures == []
    assert session.left == ["eager tiny-p16 1", "ours tiny-p16 1"]
    steps.peers(again := start())
    assert again.measured()[0] == ("point", "eager", "tiny-p16", 1)  # nothing is known of it yet


def test_what_there_is_no_time_for_is_left(start):
    session = start(seconds=0, batches=(1, 8))
    steps.peers(session)
    assert session.measured() == []
    assert session.left[0] == "eager tiny-p16 1"
    assert len(session.left) == 4


def test_floors_that_were_assumed_are_computed_again(start):
    steps.ours(session := start(ceilings=None))
    assert session.results.find("points", ("ours", "tiny-p16", 1))["ceilings"] == "assumed"
    assert "floors are by an H100's, assumed" in tables.everything(session.results.entry, "s1")
    steps.ours(again := start())
    assert len(again.measured()) == 2
    assert "ceilings" not in again.results.find("points", ("ours", "tiny-p16", 1))


def test_what_is_known_once_is_not_measured_again(start):
    session = start()
    assert steps.ceilings(session) == "kept"
    assert session.asked == []
    without = start(ceilings=None)
    without.results.entry.pop("ceilings", None)
    assert steps.ceilings(without) == "3.00 TB/s"
    assert without.asked == [("facts",)]


def test_every_stored_field_is_described(start):
    session = start()
    session.failing, session.cutting = {"torch.compile"}, {"ours fp8"}
    for step in (steps.ours, steps.peers, steps.peers, steps.quantized):
        step(session)
    described = set(", ".join(results.ABOUT).split(", "))
    plain = {"implementation", "variant", "batch", "date", "how", "calls", "images_per_second", "tflops", "gbs"}
    plain |= {"sum_ms", "operations", "problem", "count", "reason", "share"}
    rows = [*session.results.entry["points"], *session.results.entry["kernels"]]
    rows += session.results.entry["kernels"][0]["operations"]
    assert {name for row in rows for name in row} <= described | plain
