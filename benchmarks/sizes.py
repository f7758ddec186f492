"""What an image size costs on a CPU, in fp32: sizes.py OUT.json. Run by `make bench`.

bundle_bytes, with one size. In processes of their own, PyTorch imported and 224x224 first: seconds of `load` and the
first answer; of the first answer of a new size, where its engine is built and where it is in the cache. any_size: how
many times as long as a size's own engine the one for any size takes, in turn with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import conformer_fast as cf
from conformer_fast.engines.openvino.device import describe
from conformer_fast.engines.openvino.engine import OWN_SIZES
from conformer_fast.engines.timing import time_in_turn

from .cpu import identity

VARIANTS = ("tiny-p16", "small-p32")
SIZES = {(256, 320): 9, (384, 384): 7, (640, 640): 5, (800, 1344): 3}  # height and width: rounds
TURNS = 3
COLD = """
import json, sys, time
import conformer_fast as cf, torch
start = time.perf_counter()
fast = cf.load(sys.argv[1])
fast(torch.zeros(1, 3, 224, 224))
first = time.perf_counter()
fast(torch.zeros(1, 3, 256, 192))
print(json.dumps([first - start, time.perf_counter() - first]))
"""


def main(path: Path) -> None:
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"]}
    report["rows"] = [row(variant) for variant in VARIANTS]
    path.write_text(json.dumps(report, indent=1) + "\n")


def row(variant: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = cf.create_model(variant)
    with tempfile.TemporaryDirectory() as folder:
        bundle = cf.compile(model, backend="openvino", precision="fp32").save(Path(folder, "bundle"))
        built, kept = [], []
        for turn in range(TURNS):
            cache = {**os.environ, "CONFORMER_FAST_CACHE": str(Path(folder, f"cache {turn}"))}
            for found in (built, kept):
                command = [sys.executable, "-c", COLD, bundle]
                done = subprocess.run(command, env=cache, stdout=subprocess.PIPE, check=True)
                found.append(json.loads(done.stdout))
        size = sum(file.stat().st_size for file in bundle.iterdir())
    result = {
        "variant": variant,
        "bundle_bytes": size,
        "load_seconds": min(first for first, _ in built + kept),
        "built_seconds": min(new for _, new in built),
        "kept_seconds": min(new for _, new in kept),
        "any_size": list(_any_size(model)),
    }
    print(result, flush=True)
    return result


def _any_size(model: cf.Conformer) -> Iterator[dict[str, Any]]:
    shared = cf.compile(model, backend="openvino", precision="fp32")
    for place in range(OWN_SIZES):
        shared(torch.zeros(1, 3, 32, 32 * (1 + place)))  # these have engines of their own, all others share one
    for (height, width), rounds in SIZES.items():
        own = cf.compile(model, backend="openvino", precision="fp32")
        images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        times = 1 / time_in_turn({"own": own, "shared": shared}, images, rounds)["shared"].speedup
        yield {"height": height, "width": width, "times": times}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
