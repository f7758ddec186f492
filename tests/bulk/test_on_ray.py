"""batch() by actors of Ray: the file is that of one process, byte for byte, also when an actor is killed."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from by_ray import by_ray
from data_samples import picture, write

import conformer_fast as cf
from conformer_fast.bulk import on_ray
from conformer_fast.bulk.journal import Journal
from conformer_fast.datasets.dataset import open_pictures
from conformer_fast.errors import ArgumentError, ArgumentTypeError, BackendError, DatasetError


def run(fast, source, out, **options):
    return cf.batch(fast, source, out, **{"batch": 1, "progress": False, **options})


def actors() -> list[int]:
    """Processes of actors among those that this one has started, and they in turn."""
    found, parents = [], {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if b"MapWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return [process for process in found if os.getpid() in ancestors(process, parents)]


def ancestors(process: int, parents: dict[int, int]) -> list[int]:
    return [] if process not in parents else [parents[process], *ancestors(parents[process], parents)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray on this machine, for all tests; what it writes into the home folder is not the user's."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("bundle") / "digits"
    cf.compile(cf.create_model("digits", "packaged"), backend="openvino", precision="fp32").save(folder)
    return folder


@by_ray
@pytest.mark.slow
@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet"])
def test_the_file_is_that_of_one_process(cluster, bundle, digits, tmp_path, monkeypatch, form):
    """Of a bundle, by paths that are relative."""
    monkeypatch.chdir(digits.parent)
    fast = cf.load(os.path.relpath(bundle))
    run(fast, digits.name, tmp_path / f"one{form}", workers=0)
    found = run(fast, digits.name, tmp_path / f"out{form}", ray="local", cores=1)
    assert (tmp_path / f"out{form}").read_bytes() == (tmp_path / f"one{form}").read_bytes()
    assert (found.pictures, list(found.damaged), found.ray, found.workers) == (22, ["1/cut.png", "z.png"], "local", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{form}", f"out{form}"]
    assert cluster.is_initialized()


@by_ray
@pytest.mark.slow
def test_a_killed_actor_is_started_again(cluster, fast, tmp_path):
    """Twice, while it works: the second time it is another process. No picture is lost or doubled."""
    data = write(tmp_path / "data", {f"{number:03}.png": picture(number) for number in range(240)})
    options = {"size": 128, "batch": 2}
    run(fast, data, tmp_path / "one.jsonl", workers=0, **options)
    part, killed = tmp_path / "out.jsonl.part", []

    def kill():
        for rows in (1, 100):
            while not part.exists() or part.read_bytes().count(b"\n") <= rows or not actors():
                time.sleep(0.01)
            killed.append(actors()[0])
            os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    found = run(fast, data, tmp_path / "out.jsonl", ray="local", cores=2, **options)
    thread.join(1)
    assert len({*killed}) == 2
    assert found.pictures == 240
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@by_ray
@pytest.mark.slow
def test_it_goes_on_with_and_without(cluster, fast, digits, tmp_path, monkeypatch):
    """What one process has begun, Ray ends."""
    run(fast, digits, tmp_path / "one.jsonl", workers=0)
    add, made = Journal.add, []

    def ending(journal, some):
        if len(made) == 9:
            raise KeyboardInterrupt
        made.append(add(journal, some))

    for first, second in (({"workers": 0}, {"ray": "local"}), ({"ray": "local"}, {"workers": 0})):
        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", ending)
            with pytest.raises(KeyboardInterrupt):
                run(fast, digits, tmp_path / "out.jsonl", **first)
        assert run(fast, digits, tmp_path / "out.jsonl", **second).went_on_from == 9
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
        (tmp_path / "out.jsonl").unlink()


@by_ray
@pytest.mark.slow
def test_what_an_actor_raises_is_ours(cluster, bundle, digits, tmp_path):
    fast = cf.load(bundle)
    (bundle / "labels.txt").write_text("changed\n" * 10)
    with pytest.raises(cf.ConformerFastError, match=r"labels\.txt is not the file"):
        run(fast, digits, tmp_path / "out.jsonl", ray="local")


def test_ray_that_is_missing(fast, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("conformer_fast.cluster.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'Ray is not installed: pip install "conformer-fast\[ray\]"'):
        run(fast, digits, tmp_path / "out.jsonl", ray="local")
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_do_not_go_together(fast, digits, tmp_path):
    for address in ("", True, 3):
        with pytest.raises(ArgumentTypeError, match="ray must be the address of a cluster, or 'local', got"):
            run(fast, digits, tmp_path / "out.jsonl", ray=address)
    with pytest.raises(ArgumentError, match="workers decode for one process, Ray's actors decode themselves"):
        run(fast, digits, tmp_path / "out.jsonl", ray="local", workers=1)
    with pytest.raises(ArgumentError, match="cores are those of Ray's actors; leave them out, or give ray"):
        run(fast, digits, tmp_path / "out.jsonl", cores=1)
    assert list(tmp_path.iterdir()) == []


@by_ray
def test_a_cluster_that_cannot_be_reached(fast, digits, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(BackendError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: .*Connection refused"):
        run(fast, digits, tmp_path / "out.jsonl", ray="127.0.0.1:1")


@by_ray
def test_a_node_without_the_pictures(fast, tmp_path, monkeypatch):
    """All of them would be damaged."""
    import ray

    pictures = open_pictures(write(tmp_path / "data", {"0.png": picture(0)}))
    (tmp_path / "data").rename(tmp_path / "away")
    monkeypatch.setattr(ray, "get", lambda work: work)
    actor = on_ray.Actor(on_ray._Work(b"", pictures, ["0.png"], [range(1)], 64, 5, 1))
    error = pickle.loads(actor({"number": [0]})["error"][0])
    assert isinstance(error, DatasetError)
    assert str(error).endswith(f"has no folder {tmp_path / 'data'}; every node must have the pictures there")
