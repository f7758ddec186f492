"""Writers, of which one after another is killed, and readers of one bundle; run by test_save_storm.py.

    python save_storm.py FOLDER WRITERS READERS KILLS

It exits with 1 and says what was read if anybody read anything but a whole bundle.
"""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from manifest_samples import MANIFEST, read

from conformer_fast.bundles.folder import write_bundle

KINDS = 5  # of bundles; each has other files


def files(kind: int) -> dict[str, bytes]:
    names = {"labels.txt": b"cat\ndog\n"} if kind % 2 else {}
    return {"model.plan": bytes([kind]) * (200_000 + kind), **names}


def write(folder: Path, seed: int) -> None:
    choice = random.Random(seed)
    while True:
        kind = choice.randrange(KINDS)
        content = files(kind)
        labels = "labels.txt" if "labels.txt" in content else None
        write_bundle(folder, replace(MANIFEST, rebuild=str(kind), labels=labels), content)


def check(folder: Path) -> None:
    bundle = read(folder)
    content = files(int(bundle.manifest.rebuild))
    assert bundle.manifest.files.keys() == content.keys()
    assert bundle.read("model.plan") == content["model.plan"]


def read_on(folder: Path, _: int) -> None:
    while True:
        check(folder)


def started(work, folder: Path, seed: int) -> int:
    child = os.fork()
    if child:
        return child
    os.nice(10)  # the parent kills in time
    try:
        work(folder, seed)
    except BaseException as error:
        print(f"{work.__name__}: {type(error).__name__}: {error}", flush=True)
    os._exit(1)


def main(folder: Path, writers: int, readers: int, kills: int) -> int:
    choice = random.Random(0)
    write_bundle(folder, replace(MANIFEST, rebuild="1"), files(1))
    reading = [started(read_on, folder, seed) for seed in range(readers)]
    writing = [started(write, folder, seed) for seed in range(writers)]
    for kill in range(kills):
        time.sleep(choice.uniform(0, 0.03))  # any moment will do
        victim = choice.randrange(writers)
        os.kill(writing[victim], signal.SIGKILL)
        os.waitpid(writing[victim], 0)
        writing[victim] = started(write, folder, writers + kill)
    sound = True
    for child in (*reading, *writing):
        ended, _ = os.waitpid(child, os.WNOHANG)  # nobody ends by himself
        sound &= not ended
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    check(folder)
    return not sound


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
