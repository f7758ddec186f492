"""batch(): what is in the file is what `predict` says, in the source's order, from any source and in any form."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from data_samples import picture, write, write_parquet, write_tar

import conformer_fast as cf
from conformer_fast.bulk import batch as module
from conformer_fast.bulk.journal import Journal
from conformer_fast.datasets.dataset import open_pictures
from conformer_fast.errors import ArgumentError, BackendError, DatasetError

DAMAGED = ["1/cut.png", "z.png"]
PYARROW = find_spec("pyarrow") is not None
FORMS = [".jsonl", ".csv", *[".parquet"] * PYARROW]


def run(fast, source, out, **options):
    return cf.batch(fast, source, out, **{"workers": 0, "batch": 4, "progress": False, **options})


def rows(out: Path) -> list[dict]:
    """As JSON lines have them, whatever the form. Numbers are those that were written, to the last bit."""
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text(encoding="ascii").splitlines()]
    if out.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    found = []
    with open(out, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            places = [key.removeprefix("class_") for key in row if key.startswith("class_") and row[key]]
            found.append(
                {
                    "picture": row["picture"],
                    "classes": [int(row[f"class_{place}"]) for place in places],
                    "labels": [row[f"label_{place}"] for place in places],
                    "probabilities": [float(row[f"probability_{place}"]) for place in places],
                    "error": row["error"] or None,
                }
            )
    return found


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(out.stem))


@pytest.fixture(scope="module")
def whole(fast, digits, tmp_path_factory) -> Path:
    """The rows of a run of one go."""
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    run(fast, digits, out)
    return out


def test_the_rows_are_what_predict_says(fast, digits, tmp_path):
    found = run(fast, digits, tmp_path / "out.jsonl", topk=3, batch=8)  # that predict runs together
    names = [one.name for one in open_pictures(digits).pictures]
    said = fast.predict([digits / name for name in names], topk=3)
    by_name = {os.path.relpath(one.path, digits): one.top for one in said.pictures}
    written = rows(tmp_path / "out.jsonl")
    assert [row["picture"] for row in written] == names
    assert len(by_name) == 20
    for row in written:
        top = by_name.get(row["picture"], ())
        assert row["classes"] == [guess.index for guess in top]
        assert row["labels"] == [guess.label for guess in top]
        assert row["probabilities"] == [guess.probability for guess in top]
        assert (row["error"] is None) == bool(top)
    assert (found.pictures, found.went_on_from, list(found.damaged)) == (22, 0, DAMAGED)
    assert found.damaged == {row["picture"]: row["error"] for row in written if row["error"]}
    assert (found.kind, found.size, found.batch, found.backend) == ("folder", 64, 8, "reference")
    assert beside(tmp_path / "out.jsonl") == ["out.jsonl"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_rows(fast, digits, whole, tmp_path, form):
    found = run(fast, digits, tmp_path / f"out{form}")
    assert rows(tmp_path / f"out{form}") == rows(whole)
    assert found.out == str(tmp_path / f"out{form}")
    assert beside(tmp_path / f"out{form}") == [f"out{form}"]


def test_columns_of_parquet(fast, digits, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(fast, digits, tmp_path / "out.parquet", topk=1)
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "out.parquet")}
    assert kinds == {
        "picture": "string",
        "classes": "list<element: int32>",
        "labels": "list<element: string>",
        "probabilities": "list<element: float>",
        "error": "string",
    }


def test_columns_of_csv(fast, digits, tmp_path):
    run(fast, digits, tmp_path / "out.csv", topk=1000)
    lines = (tmp_path / "out.csv").read_bytes().decode().split("\n")
    names = [f"{what}_{place}" for place in range(1, 11) for what in ("class", "label", "probability")]
    assert lines[0].split(",") == ["picture", *names, "error"]
    assert len(lines) == 1 + 22 + 1
    assert next(line for line in lines if line.startswith("z.png")).startswith("z.png" + 31 * ",")


def test_every_source_has_the_same_classes(fast, digits, whole, tmp_path):
    """Names are those of the source, in its own order; damaged pictures stay where they are."""
    pictures = open_pictures(digits)
    contents = {one.name: pictures.read(index) for index, one in enumerate(pictures.pictures)}
    turned = dict(reversed(contents.items()))
    sources = {"tar": (write_tar(tmp_path / "x.tar", {**turned, "1/cut.json": b"["}), list(turned))}
    for shard, names in enumerate((list(turned)[:9], list(turned)[9:])):
        write_tar(tmp_path / f"shard-{shard}.tar", {name: turned[name] for name in names})
    shards = [f"shard-{int(place >= 9)}.tar/{name}" for place, name in enumerate(turned)]
    sources["tars"] = (tmp_path / "shard-*.tar", shards)
    if PYARROW:
        file = write_parquet(tmp_path / "x.parquet", list(turned.values()), [None] * 22)
        sources["parquet"] = (file, [f"x.parquet:{row}" for row in range(22)])
    by_name = {row["picture"]: row for row in rows(whole)}
    for kind, (source, names) in sources.items():
        found = run(fast, source, tmp_path / f"{kind}.jsonl")
        written = rows(tmp_path / f"{kind}.jsonl")
        assert [row["picture"] for row in written] == names
        assert [row["classes"][:1] for row in written] == [by_name[name]["classes"][:1] for name in turned]
        assert [row["error"] is None for row in written] == [name not in DAMAGED for name in turned]
        assert (found.pictures, len(found.damaged)) == (22, 2)


def test_the_number_of_processes_does_not_matter(fast, digits, whole, tmp_path):
    found = run(fast, digits, tmp_path / "out.jsonl", workers=2)
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
    assert found.workers == 2


def test_names_that_are_no_text(fast, tmp_path):
    name = os.fsdecode(b'\xff\n,".png')
    try:
        write(tmp_path / "data", {name: picture(7)})
    except OSError:
        pytest.skip("this file system takes no such name")
    for form in FORMS:
        run(fast, tmp_path / "data", tmp_path / f"out{form}")
        assert [row["picture"] for row in rows(tmp_path / f"out{form}")] == ['\\udcff\n,".png']


def test_only_damaged_pictures(fast, tmp_path):
    write(tmp_path / "data", {"a.png": b"", "b.png": b"no"})
    found = run(fast, tmp_path / "data", tmp_path / "out.csv")
    assert list(found.damaged) == ["a.png", "b.png"]
    assert [row["classes"] for row in rows(tmp_path / "out.csv")] == [[], []]


def test_rows_are_written_as_they_come(fast, digits, tmp_path, monkeypatch):
    """None is kept in memory: after each batch all are in the file."""
    part, sizes = tmp_path / "out.jsonl.part", []
    add = Journal.add

    def counting(journal, some):
        add(journal, some)
        sizes.append(part.read_bytes().count(b"\n") - 1)

    monkeypatch.setattr(Journal, "add", counting)
    run(fast, digits, tmp_path / "out.jsonl")
    assert sizes == [4, 8, 12, 16, 20, 22]


# Going on


def broken_off(fast, digits, out, batches, monkeypatch, **options) -> None:
    """A run that ends, as by Ctrl-C, at its next batch after so many."""
    add, made = Journal.add, []

    def ending(journal, some):
        if len(made) == batches:
            raise KeyboardInterrupt
        made.append(add(journal, some))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", ending)
        with pytest.raises(KeyboardInterrupt):
            run(fast, digits, out, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batches", [0, 1, 4, 5])
def test_a_run_that_was_broken_off_goes_on(fast, digits, tmp_path, monkeypatch, batches, form):
    one_go, out = tmp_path / f"one{form}", tmp_path / f"out{form}"
    run(fast, digits, one_go)
    broken_off(fast, digits, out, batches, monkeypatch)
    assert beside(out) == [f"out{form}.part"]
    ran = _pictures_run(fast, monkeypatch)
    found = run(fast, digits, out)
    assert out.read_bytes() == one_go.read_bytes()
    assert (found.went_on_from, found.pictures, list(found.damaged)) == (4 * batches, 22, DAMAGED)
    assert sum(ran) == sum(row["error"] is None for row in rows(out)[4 * batches :])
    assert beside(out) == [out.name]


def _pictures_run(fast, monkeypatch) -> list[int]:
    ran, call = [], fast.run

    def counting(images):
        ran.append(len(images))
        return call(images)

    monkeypatch.setattr(fast, "run", counting)
    return ran


def test_pictures_that_run_together_do_so_again(fast, digits, whole, tmp_path, monkeypatch):
    """A part of a batch that was written is written anew."""
    broken_off(fast, digits, tmp_path / "out.jsonl", 3, monkeypatch)
    part = tmp_path / "out.jsonl.part"
    lines = part.read_bytes().splitlines(keepends=True)
    ran = _pictures_run(fast, monkeypatch)
    for kept in (5, 6, 9, 12):
        part.write_bytes(b"".join(lines[: 1 + kept]))
        before = len(ran)
        found = run(fast, digits, tmp_path / "out.jsonl")
        assert found.went_on_from == kept // 4 * 4
        assert len(ran) - before == 6 - kept // 4  # batches
        assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
        (tmp_path / "out.jsonl").unlink()


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"topk": 2}, "topk was 5 and is 2;"),
        ({"batch": 2}, "batch was 4 and is 2;"),
        ({"size": 96, "topk": 1}, "topk was 5 and is 1, size was 64 and is 96;"),
    ],
    ids=str,
)
def test_other_options_are_refused(fast, digits, tmp_path, monkeypatch, changed, difference):
    out = tmp_path / "out.csv"
    broken_off(fast, digits, out, 2, monkeypatch)
    before = (tmp_path / "out.csv.part").read_bytes()
    with pytest.raises(DatasetError, match=rf"out\.csv\.part is of another run: {difference} give another output, or"):
        run(fast, digits, out, **changed)
    assert (tmp_path / "out.csv.part").read_bytes() == before
    assert run(fast, digits, out).went_on_from == 8


def test_another_model_or_source_is_refused(fast, digits, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    broken_off(fast, digits, out, 2, monkeypatch)
    with pytest.raises(DatasetError, match="is of another run: of other weights; give"):
        run(cf.compile(cf.create_model("digits"), backend="reference"), digits, out)
    named = cf.create_model("digits", "packaged")
    named.recipe = cf.Recipe(**{**vars(named.recipe), "labels": tuple("abcdefghij")})
    with pytest.raises(DatasetError, match="is of another run: of other names of the classes; give"):
        run(cf.compile(named, backend="reference"), digits, out)
    write(tmp_path / "data", {f"{shade}.png": picture(shade) for shade in range(22)})
    with pytest.raises(DatasetError, match="is of another run: of other pictures; give"):
        run(fast, tmp_path / "data", out)
    (tmp_path / "data" / "0.png").unlink()
    with pytest.raises(DatasetError, match="of other pictures, pictures was 22 and is 21; give"):
        run(fast, tmp_path / "data", out)


def test_what_is_no_part_is_left_alone(fast, digits, tmp_path):
    part = tmp_path / "out.csv.part"
    for content in (b"mine\n", b"\n", b"0" * 100):
        part.write_bytes(content)
        with pytest.raises(DatasetError, match=r"out\.csv\.part holds no rows of a batch; give another output"):
            run(fast, digits, tmp_path / "out.csv")
        assert part.read_bytes() == content
    part.unlink()
    part.mkdir()
    with pytest.raises(DatasetError, match=r"out\.csv\.part cannot be read \(Is a directory\)"):
        run(fast, digits, tmp_path / "out.csv")


# The output


def test_an_output_that_is_there_is_refused(fast, digits, tmp_path):
    (tmp_path / "out.jsonl").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=r"out\.jsonl is there already; give another name, or delete it first"):
        run(fast, digits, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine"
    assert beside(tmp_path / "out.jsonl") == ["out.jsonl"]


@pytest.mark.parametrize("name", ["out", "out.json", "out.tar", "out.parquet.gz", "jsonl"])
def test_other_endings_are_refused(fast, digits, tmp_path, name):
    with pytest.raises(ArgumentError, match=rf"{name} must end in \.jsonl, \.csv or \.parquet"):
        run(fast, digits, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_is_refused_before_any_work(fast, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendError, match=r"parquet files need pyarrow: pip install .*; or write \.jsonl"):
        run(fast, digits, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_comes_meanwhile_is_kept(fast, digits, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda journal, some: (add(journal, some), out.write_bytes(b"mine")))
    with pytest.raises(ArgumentError, match="is there already"):
        run(fast, digits, out)
    assert out.read_bytes() == b"mine"
    assert beside(out) == ["out.jsonl", "out.jsonl.part"]


def test_a_link_leads_to_the_output(fast, digits, whole, tmp_path):
    (tmp_path / "link.jsonl").symlink_to("there")
    run(fast, digits, tmp_path / "link.jsonl")
    assert (tmp_path / "there").read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "there"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [".part", ".part.new"])
def test_a_full_disk_loses_nothing(fast, digits, tmp_path, monkeypatch, form, place):
    """While rows are written, and while they become the results."""
    one_go, out = tmp_path / f"one{form}", tmp_path / f"out{form}"
    run(fast, digits, one_go)
    with monkeypatch.context() as patch:
        if place == ".part":
            write_, room = Journal._write, [1200]

            def filling(journal, content):
                room[0] -= len(content)
                write_(journal, content[: max(0, len(content) + min(0, room[0]))])
                if room[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(Journal, "_write", filling)
        else:

            def half(file, some, topk):
                file.write(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setitem(module.WRITERS, form, half)
        with pytest.raises(
            OSError, match=r"No space left on device; what is done is kept, the same call goes on"
        ) as no:
            run(fast, digits, out)
    assert no.value.errno == errno.ENOSPC
    assert no.value.filename == f"{out}{place}"
    assert beside(out) == [f"out{form}.part"]
    found = run(fast, digits, out)
    assert found.went_on_from == (4 if place == ".part" else 22)
    assert out.read_bytes() == one_go.read_bytes()


def test_what_a_killed_call_left_of_the_results_is_replaced(fast, digits, whole, tmp_path):
    (tmp_path / "out.jsonl.part.new").write_bytes(b"half")
    run(fast, digits, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
    assert beside(tmp_path / "out.jsonl") == ["out.jsonl"]


def test_two_calls_at_once(fast, digits, whole, tmp_path, monkeypatch):
    """The second waits, and is then told that all is there."""
    out, inside, go_on, errors = tmp_path / "out.jsonl", threading.Event(), threading.Event(), []
    add = Journal.add

    def waiting(journal, some):
        inside.set()
        assert go_on.wait(60)
        add(journal, some)

    def second():
        try:
            run(fast, digits, out)
        except ArgumentError as error:
            errors.append(str(error))

    monkeypatch.setattr(Journal, "add", waiting)
    threads = [threading.Thread(target=run, args=(fast, digits, out)), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(1)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert errors == [f"{out} is there already; give another name, or delete it first"]
    assert beside(out) == ["out.jsonl"]
    assert out.read_bytes() == whole.read_bytes()


# What is refused, or warned of


def test_scores_that_are_no_numbers_end_the_run(fast, digits, tmp_path, monkeypatch):
    """What was written before stays."""
    call, calls = fast.run, []

    def broken(images):
        calls.append(images)
        conv, trans = call(images)
        return conv, trans * (float("nan") if len(calls) == 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(fast, "run", broken)
        with pytest.raises(ArgumentError, match="scores are NaN or infinite"):
            run(fast, digits, tmp_path / "out.jsonl")
    assert beside(tmp_path / "out.jsonl") == ["out.jsonl.part"]
    assert run(fast, digits, tmp_path / "out.jsonl").went_on_from == 8


def test_models_that_cannot_be_run(digits, tmp_path):
    features = cf.compile(cf.create_model("digits", "packaged", features_only=True), backend="reference")
    with pytest.raises(ArgumentError, match="predict needs conv_logits, trans_logits or logits"):
        run(features, digits, tmp_path / "out.jsonl")
    with pytest.raises(cf.ArgumentTypeError, match="batch needs a classifier that compile or load returned, got"):
        run(cf.create_model("digits"), digits, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"topk": 0}, {"batch": 0}, {"workers": -1}, {"size": 0}, {"progress": 1}], ids=str)
def test_numbers_that_do_not_fit(fast, digits, tmp_path, options):
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} must be"):
        run(fast, digits, tmp_path / "out.jsonl", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_pictures(fast, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no pictures"):
        run(fast, tmp_path / "empty", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_results_may_lie_in_the_source(fast, tmp_path, monkeypatch):
    """They are no pictures, and change nothing when the run goes on."""
    data = write(tmp_path / "data", {f"{shade}.png": picture(shade) for shade in range(9)})
    broken_off(fast, data, data / "out.jsonl", 1, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(fast, data, data / "out.jsonl").went_on_from == 4
    assert len(rows(data / "out.jsonl")) == 9
