"""The GPU suite's result file: merged, resumed, never mixed, never lost."""

import json
import math

import pytest
from gpu_suite_samples import MACHINE, STAMP

from benchmarks.gpu.results import Results


@pytest.fixture
def file(tmp_path):
    return tmp_path / "out" / "gpu.json"


def test_results_are_merged(file):
    first = Results(file, MACHINE, STAMP)
    first.put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    first.put("points", ("ours", "tiny-p16", 1), {"ms": 1.0})
    second = Results(file, MACHINE, {"commit": "def", "source": "s2"})
    second.put("points", ("ours", "tiny-p16", 1), {"ms": 0.5})
    (entry,) = json.loads(file.read_text())["machines"]
    assert {(row["implementation"], row["ms"], row["commit"], row.get("previous_ms")) for row in entry["points"]} == {
        ("eager", 5.0, "abc", None),
        ("ours", 0.5, "def", 1.0),
    }
    assert [path.name for path in file.parent.iterdir()] == ["gpu.json"]


def test_what_is_not_finite_is_null(file):
    Results(file, MACHINE, STAMP).put("checks", ("a",), {"error": math.nan, "inside": [{"us": math.inf}, 1.0]})
    (row,) = json.loads(file.read_text())["machines"][0]["checks"]
    assert (row["error"], row["inside"]) == (None, [{"us": None}, 1.0])


def test_machines_never_mix(file):
    Results(file, MACHINE, STAMP).put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    other = Results(file, {**MACHINE, "driver": "2"}, STAMP)
    assert other.find("points", ("eager", "tiny-p16", 1)) is None
    other.put("points", ("eager", "tiny-p16", 1), {"ms": 6.0})
    entries = json.loads(file.read_text())["machines"]
    assert [(entry["machine"]["driver"], entry["points"][0]["ms"]) for entry in entries] == [("1", 5.0), ("2", 6.0)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"machines": ',
        '{"machines": 5}',
        '{"machines": [{}]}',
        '{"machines": [{"machine": {}, "points": [{}]}]}',
    ],
)
def test_a_foreign_file_is_not_overwritten(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=r"gpu\.json is not a result file of this suite; move it away"):
        Results(file, MACHINE, STAMP)
    assert file.read_text() == text


def test_an_earlier_run_is_resumed_elsewhere(file, tmp_path):
    first = Results(file, MACHINE, STAMP)
    assert first.origin == "begins anew"
    first.put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    elsewhere = tmp_path / "second" / "gpu.json"
    second = Results(elsewhere, MACHINE, {**STAMP, "source": "s2"}, resume=file)
    assert second.origin == f"resumes {file}: this machine, 0 of 1 rows of this source"
    assert second.find("points", ("eager", "tiny-p16", 1))["ms"] == 5.0
    second.put("points", ("eager", "tiny-p16", 1), {"ms": 6.0})
    assert [json.loads(path.read_text())["machines"][0]["points"][0]["ms"] for path in (file, elsewhere)] == [5.0, 6.0]
    other = Results(tmp_path / "third.json", {**MACHINE, "driver": "2"}, STAMP, resume=file)
    assert other.origin == f"resumes {file}, which has other machines only: here {{'driver': '2'}}"
    assert other.find("points", ("eager", "tiny-p16", 1)) is None


def test_what_resuming_would_lose_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"gpu\.json is not there, so nothing can be resumed"):
        Results(tmp_path / "new.json", MACHINE, STAMP, resume=file)
    Results(file, MACHINE, STAMP).put("points", ("eager", "tiny-p16", 1), {"ms": 5.0})
    Results(file, MACHINE, STAMP, resume=file)  # the same file is what goes on anyway
    another = tmp_path / "another.json"
    another.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="is there already: it would be lost by resuming"):
        Results(file, MACHINE, STAMP, resume=another)
