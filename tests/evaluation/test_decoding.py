"""Processes that decode: they end with this one, and their end is told, whenever either comes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import numpy as np
import pytest
from data_samples import picture, write

from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.evaluation.decoding import decoded

pytestmark = pytest.mark.slow

SIZE = 256  # one batch is more than a pipe holds
STARTING = """
if __name__ == "__main__":  # what a program imports outside, its processes import first
    import os, signal, sys
    from multiprocessing import active_children
    from conformer_fast.datasets.dataset import open_dataset
    from conformer_fast.evaluation.decoding import _started, decoded

    dataset, moment = open_dataset(sys.argv[1]), sys.argv[2]
    groups = [list(range(4))] * 100
    if moment == "starting":
        with _started(2):
            print(*(child.pid for child in active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    for found in decoded(dataset, 256, groups, 2):
        print(len(found.pictures), *(child.pid for child in active_children()), flush=True)
        signal.pause()
"""


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write(tmp_path / "data", {f"a/{index}.png": picture(index) for index in range(4)}))


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_groups_come_in_their_order(dataset):
    groups = [[3], [0, 1], [2], [1, 3]]
    found = list(decoded(dataset, 32, groups, 2))
    assert [batch.pictures for batch in found] == groups
    assert active_children() == []
    for batch, alone in zip(found, decoded(dataset, 32, groups, 0), strict=True):
        assert batch.images is not None
        assert np.array_equal(batch.images, alone.images)
    assert list(decoded(dataset, 32, [], 2)) == []


def test_a_process_that_is_killed_is_told(dataset):
    """Whatever it is doing, also while it writes."""
    batches = decoded(dataset, SIZE, [list(range(4)) * 8] * 4, 1)
    next(batches)
    (child,) = active_children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="a decoding process ended by signal 9; if memory ran out, use fewer workers"):
        list(batches)
    assert active_children() == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
@pytest.mark.parametrize(("moment", "number"), [("starting", signal.SIGKILL), ("decoding", signal.SIGTERM)])
def test_the_processes_end_with_this_one(dataset, tmp_path, moment, number):
    (tmp_path / "program.py").write_text(STARTING)
    command = [sys.executable, tmp_path / "program.py", tmp_path / "data", moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        children = [int(word) for word in program.stdout.readline().split()][-2:]
        if moment == "decoding":
            program.send_signal(number)
        assert program.wait(60) == -number
    end = time.monotonic() + 5
    assert len(children) == 2
    while any(map(alive, children)):
        assert time.monotonic() < end, "they live on"
        time.sleep(0.05)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_container_without_shared_memory_or_home(tmp_path):
    """/dev/shm of 4 KiB, neither HOME nor a locale, and a name that is not UTF-8 to print."""
    small = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("may not mount")
    write(tmp_path, {f"data/{digit}/x.png": picture(digit) for digit in range(10)})
    damaged = os.fsencode(tmp_path) + b"/data/3/caf\xe9.png"
    with open(damaged, "wb") as file:
        file.write(b"no picture")
    arguments = ["--model", "digits", "--backend", "reference", "--workers", "2", "--batch", "4", "--skip-damaged"]
    command = [sys.executable, "-m", "conformer_fast.cli", "evaluate", "--data", str(tmp_path / "data"), *arguments]
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "sh", *command],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (found.returncode, found.stderr) == (1, "")
    assert "10 of 11 pictures evaluated, 1 damaged" in found.stdout
    assert "damaged: 3/caf\\udce9.png: empty, damaged or not an image" in found.stdout
