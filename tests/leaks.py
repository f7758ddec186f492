"""What a process takes while it does the same again and again, run by tests/hostile/test_leaks.py.

    python leaks.py CASE CYCLES [CASE CYCLES ...]

It prints as JSON, of the second half of a case's cycles: KB that memory grows by, along a line through them, and the
least and most descriptors and threads after a cycle.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lookalikes
import numpy as np
import torch

import conformer_fast as cf
from conformer_fast.engines.openvino import engine  # noqa: F401  # before the forks

WARM_UP = 3  # cycles
THREADS = 4
SIZES = [(32, 32), (32, 48), (48, 32), (48, 48), (16, 32)]  # more than stay in memory
BATCHES = [1, 2, 3, 5]
CONFIG = cf.ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)


def compiled(backend: str) -> Iterator[None]:
    model, images = _model(), torch.randn(1, 3, 32, 32)
    while True:
        cf.compile(model, backend=backend, precision="fp32")(images)
        yield


def built() -> Iterator[None]:
    """With nothing in the cache."""
    cycle = compiled("openvino")
    while True:
        cf.clear_cache()
        yield next(cycle)


def loaded() -> Iterator[None]:
    """A bundle, with a size that is in it."""
    images = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        fast = cf.compile(_model(), backend="openvino", precision="fp32")
        fast(images)
        bundle = fast.save(Path(folder, "bundle"))
        del fast
        while True:
            cf.load(bundle)(images)
            yield


def soaked() -> Iterator[None]:
    """Four threads, each with 4 calls of one of two engines; all results are those of one thread, bit for bit."""
    model = _model()
    engines = [cf.compile(model, backend=cf.OpenVINO(threads=threads), precision="fp32") for threads in (1, 2)]
    cases = [(fast, torch.randn(batch, 3, *size)) for fast in engines for size in SIZES for batch in BATCHES]
    expected = [fast(images).logits for fast, images in cases]

    def work(seed: int) -> None:
        for case in np.random.default_rng(seed).integers(len(cases), size=4):
            fast, images = cases[case]
            assert torch.equal(fast(images).logits, expected[case])

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, 1 << 30, THREADS):
            list(pool.map(work, range(start, start + THREADS)))
            yield


CASES: dict[str, Callable[[], Iterator[None]]] = {
    "reference": lambda: compiled("reference"),
    "openvino": lambda: compiled("openvino"),
    "built": built,
    "loaded": loaded,
    "soaked": soaked,
}


def taken(case: str, cycles: int) -> dict[str, Any]:
    """What one case leaves, after a warm-up."""
    found, cycle = [], CASES[case]()
    for _ in range(WARM_UP):
        next(cycle)
    gc.freeze()  # what is there is looked through once
    for _ in range(cycles):
        next(cycle)
        gc.collect()
        found.append((_memory(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
    cycle.close()
    memory, descriptors, threads = np.array(found)[cycles // 2 :].T
    grown = np.polyfit(range(len(memory)), memory, 1)[0] * len(memory)
    return {
        "KB": round(float(grown)),
        "descriptors": [int(descriptors.min()), int(descriptors.max())],
        "threads": [int(threads.min()), int(threads.max())],
    }


def _model() -> torch.nn.Module:
    return lookalikes.fill(cf.Conformer(CONFIG)).eval()


def _memory() -> int:
    """Resident, in KB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main(*arguments: str) -> dict[str, Any]:
    """Each case in a process of its own, forked from this one, which has imported all and run nothing."""
    found = {}
    for case, cycles in zip(arguments[::2], arguments[1::2], strict=True):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, json.dumps(taken(case, int(cycles))).encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as opened:
            found[case] = json.loads(opened.read() or "null")
        os.waitpid(child, 0)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
