"""What is killed at random moments, run by tests/hostile/test_kills.py. Each prints as JSON what happened how often.

    python killed.py saves FOLDER KILLS
    python killed.py cache KILLS
    python killed.py evaluate DATA FILE WORKERS KILLS
    python killed.py batch DATA FILE KILLS
    python killed.py download NAME KILLS

It exits with another status than 0, and says why, if anything was not as it must be.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from killing import alone, storm, until_it_ends

WRITERS, READERS = 4, 8
KINDS = 5  # of bundles; each has other files
ENTRIES = [random.Random(seed).randbytes(150_000 + 10_000 * seed) for seed in range(12)]  # of the cache
ROOM = 1_200_000  # bytes, for half of them
BATCH = 4  # pictures


def saves(folder: str, kills: str) -> Counter[str]:
    """Bundles saved to one folder: who reads it gets one of them, whole."""
    from manifest_samples import MANIFEST, read

    from conformer_fast.bundles.folder import LOCK, write_bundle

    def files(kind: int) -> dict[str, bytes]:
        names = {"labels.txt": b"cat\ndog\n"} if kind % 2 else {}
        return {"model.plan": bytes([kind]) * (200_000 + kind), **names}

    def write(kind: int) -> None:
        labels = "labels.txt" if "labels.txt" in files(kind) else None
        write_bundle(folder, replace(MANIFEST, rebuild=str(kind), labels=labels), files(kind))

    def check() -> None:
        bundle = read(Path(folder))
        content = files(int(bundle.manifest.rebuild))
        assert bundle.manifest.files.keys() == content.keys()
        assert bundle.read("model.plan") == content["model.plan"]

    def write_on(seed: int) -> None:
        choice = random.Random(seed)
        while True:
            write(choice.randrange(KINDS))

    def read_on(seed: int) -> None:
        while True:
            check()

    def busy(process: int) -> bool:
        return _held(Path(folder, LOCK), process)

    def seen(process: int) -> str:
        return "killed while saving" if busy(process) else "killed while waiting to save"

    write(1)
    found = storm([write_on] * WRITERS, [read_on] * READERS, int(kills), busy, seen)
    check()
    return found


def cache(kills: str) -> Counter[str]:
    """Engines kept, found and removed: nobody gets another's, or less than all of it, or is told of damage."""
    from conformer_fast.engines import cache
    from conformer_fast.storage.lock import held

    def use(seed: int) -> None:
        choice = random.Random(seed)
        while True:
            entry = choice.randrange(len(ENTRIES))
            assert cache.cached({"entry": entry}, partial(ENTRIES.__getitem__, entry)) == ENTRIES[entry]
            assert cache.remembered({"entry": entry}, partial(str, entry)) == str(entry)

    def look(seed: int) -> None:
        choice = random.Random(seed)
        while True:
            assert all(len(ENTRIES[found.fields["entry"]]) == found.size for found in cache.cached_engines())
            if not choice.randrange(50):
                cache.clear_cache()

    def busy(process: int) -> bool:
        return any(_held(lock, process) for lock in folder.glob(f"*{cache.LOCK}"))

    def seen(process: int) -> str:
        writing, waiting = _held(folder / cache.ROOM_LOCK, process), busy(process)
        with held(FileLock(folder / cache.ROOM_LOCK)):  # nobody writes
            taken = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (cache.ENGINE, cache.PART))
        assert taken <= ROOM, f"{taken} bytes"
        return "killed while writing" if writing else "killed while locking" if waiting else "killed while looking"

    warnings.simplefilter("error")  # nobody waits for ten seconds
    cache.LIMIT_BYTES = ROOM
    folder = cache.engines_folder()
    folder.mkdir(parents=True)
    found = storm([use, use, use, look], [], int(kills), busy, seen)
    found["files left half written"] = len([*folder.glob(f"*{cache.PART}")])
    for entry in cache.cached_engines():
        assert cache.cached(entry.fields, lambda: b"not there") == ENTRIES[entry.fields["entry"]]
    for later in range(20):  # more than there is room for
        cache.cached({"later": later}, partial(bytes, 100_000))
    assert not [*folder.glob(f"*{cache.PART}")]
    cache.clear_cache()
    assert not [*folder.iterdir()]
    return found


def evaluate(data: str, file: str, workers: str, kills: str) -> Counter[str]:
    """Evaluations killed and resumed until they end: they keep what one that is left alone keeps, byte for byte."""
    import torch

    import conformer_fast as cf
    from conformer_fast.evaluation import evaluate as module
    from conformer_fast.evaluation.resume import DONE, MAGIC

    torch.set_num_threads(1)
    module.SAVE_EVERY = 0.0  # after each batch
    path, done = Path(file), 0
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="reference")

    def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        time.sleep(0.2 if int(workers) else 0)  # ten of them take as long as the start
        return images[:, 0, 30:32, :5].flatten(1), images[:, 0, 34:36, :5].flatten(1)

    def work(_: int) -> None:
        module.evaluate(fast, data, batch=BATCH, workers=int(workers), resume=path, progress=False)

    def seen(process: int) -> str:
        nonlocal done
        before, done = done, _done() if path.exists() else 0
        assert done >= before, f"of {before} pictures {done} are left"
        parts = [*path.parent.glob(f"{path.name}.*.part")]
        for part in parts:
            os.utime(part, (0, 0))  # the next save removes it
        return "killed while keeping" if parts else "killed before a batch" if not done else "killed between batches"

    def _done() -> int:
        first, _, content = path.read_bytes().partition(b"\n")
        assert first == MAGIC + hashlib.sha256(content).hexdigest().encode()
        return content[-pictures:].count(DONE)

    fast.run = run
    work(0)
    path.unlink()
    start = time.perf_counter()
    work(0)
    seconds, whole, found = time.perf_counter() - start, path.read_bytes(), Counter[str]()
    pictures = len([*Path(data).glob("*/*.png")])
    while found.total() < int(kills):
        path.unlink()
        done = 0
        found += until_it_ends(work, 1.5 * seconds, seen)
        found["resumed to the end"] += 1
        assert path.read_bytes() == whole
        assert {path.name for path in path.parent.iterdir()} == {path.name, Path(data).name}
    return found


def batch(data: str, file: str, kills: str) -> Counter[str]:
    """Runs over many pictures, killed wherever something is written, then at random moments, and started again until
    they end: they write what one that is left alone writes, byte for byte."""
    import torch

    import conformer_fast as cf
    from conformer_fast.bulk import batch as module
    from conformer_fast.bulk.journal import Journal
    from conformer_fast.bulk.results import WRITERS

    torch.set_num_threads(1)
    path, found = Path(file), Counter[str]()
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="reference")
    write, replace_, writer = Journal._write, os.replace, WRITERS[path.suffix]

    def run(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return pixels[:, 0, 30:32, :5].flatten(1).float(), pixels[:, 0, 34:36, :5].flatten(1).float()

    def work(_: int) -> None:
        if not path.exists():  # it was not killed at the very end
            module.batch(fast, data, path, batch=BATCH, workers=0, progress=False)

    def work_until(place: int) -> None:
        """Kills itself at so many places where something is half written."""
        left = place

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def write_halves(journal: Journal, content: bytes) -> None:
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                write(journal, part)
                step()

        def writing(opened: BinaryIO, rows: Iterable[object], topk: int) -> None:
            def stepping() -> Iterator[object]:
                for row in rows:
                    yield row
                    opened.flush()
                    step()

            writer(opened, stepping(), topk)

        def replacing(new: Path, there: Path) -> None:
            step()
            replace_(new, there)
            step()

        Journal._write, os.replace, WRITERS[path.suffix] = write_halves, replacing, writing
        work(0)

    def seen(process: int) -> str:
        left = {one.name.removeprefix(path.name) for one in path.parent.glob(f"{path.name}*")}
        assert left <= {"", module.PART, module.NEW, module.LOCK}, left
        if path.exists():
            assert path.read_bytes() == whole
            return "killed when all was there"
        return (
            f"killed while writing {'results' if module.NEW in left else 'rows' if module.PART in left else 'nothing'}"
        )

    def clean() -> None:
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()

    fast.run = run
    start = time.perf_counter()
    assert not alone(work)  # in a process of its own: pyarrow has threads
    seconds, whole = time.perf_counter() - start, path.read_bytes()
    for place in itertools.count():
        clean()
        if not alone(work_until, place):
            break
        found[seen(0)] += 1
        assert not alone(work)
        assert path.read_bytes() == whole
    while found.total() < int(kills):
        clean()
        found += until_it_ends(work, 1.5 * seconds, seen)
        found["went on to the end"] += 1
        assert path.read_bytes() == whole
    return found


def download(name: str, kills: str) -> dict[str, int | list[int]]:
    """Downloads killed and started again until they are whole. "had": bytes that each start of them found there."""
    from conformer_fast.checkpoints import download as module
    from conformer_fast.storage.paths import cache_root

    target = cache_root() / "weights" / name
    part, had = target.with_name(f"{name}.part"), [0]

    def work(_: int) -> None:
        module.fetch("tiny-p16")

    def seen(process: int) -> str:
        had.append(part.stat().st_size if part.exists() else had[-1] if target.exists() else 0)
        assert had[-1] >= had[-2], f"of {had[-2]} bytes {had[-1]} are left"
        return "killed with a part" if part.exists() else "killed without"

    module.FILES["tiny-p16"] = name
    found = Counter[str]()
    while found.total() < int(kills):
        found += until_it_ends(work, 0.05, seen)
        found["resumed to the end"] += 1
        work(0)  # tidies, if it was killed when all was there
        left = {path.name for path in target.parent.iterdir()} - {name, f"{name}.hash"}
        assert all(path.startswith(f"{name}.hash.") for path in left), left  # that is for an hour
        shutil.rmtree(target.parent)
        had.append(0)
    return {**found, "had": had}


def _held(lock: Path, process: int) -> bool:
    """Whether it is the last that has locked it, and has not given it back."""
    try:
        return lock.read_text() == str(process)
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
