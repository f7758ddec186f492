"""The GPU suite's step `tune`: which problems it takes."""

from pretended_session import ONE

from benchmarks.gpu import tuning


def test_what_loses_most_is_tuned_and_what_pytorch_runs_faster():
    operations = [
        {**ONE, "problem": f"p{index}", "us": 3.0 + index, "pytorch_us": 100.0, "count": 1} for index in range(40)
    ]
    operations[0] |= {"pytorch_us": 1.0}
    operations[1] |= {"pytorch_us": 1.0, "choice": "pytorch"}  # it is PyTorch's already
    table = {"variant": "tiny-p16", "batch": 8, "precision": "fp16", "operations": operations}
    twice = {**table, "batch": 1, "operations": [{**operations[39], "us": 1e3}]}
    places = tuning.losing([table, twice, {"variant": "small-p16", "batch": 1, "precision": "fp16", "failed": "no"}])
    assert places[0] == ["tiny-p16", 1, "fp16", "p39"]  # where it loses most
    assert [place[3] for place in places[1:]] == [*(f"p{index}" for index in range(38, 15, -1)), "p0"]


def test_nothing_is_tuned_without_a_table(start):
    assert tuning.tune(start()) == "there is no table of kernels to tune by: headline or ours makes one"
