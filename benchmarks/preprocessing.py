"""Our image path against Pillow and NumPy, in turn in one run, by one core's time: decoded picture to float32 NCHW.

    python -m benchmarks.preprocessing [FILE.json]

The peer resizes with Pillow, crops, and normalizes with NumPy in float32, as few operations as it takes; its result is
compared with ours before the clock starts. Both begin with the same Pillow image: what it takes us to reach its memory
counts. Then the same in float16 and uint8, on each instruction set, and for a batch on all cores against on one.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from conformer_fast.engines.timing import time_in_turn
from conformer_fast.model import recipe
from conformer_fast.preprocessing import cpu as path
from conformer_fast.tables import Column, Table

PEER = "Pillow + NumPy"
SIZES = {(500, 375): 300, (375, 500): 300, (320, 240): 300, (100, 75): 300, (1920, 1080): 60, (4000, 3000): 20}
BATCH = 64
FIGURES = Table(Column(), Column("ms", ".3f"), Column("times as fast", ".2f"))
MEAN, STD = np.array(recipe.MEAN, np.float32), np.array(recipe.STD, np.float32)


def photo(width: int, height: int) -> Image.Image:
    """Smooth colors and some noise; the arithmetic takes the same time for any."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 30), np.cos(y / 20), np.sin((x + y) / 50)], axis=-1) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def by_pillow_and_numpy(image: Image.Image, size: int = 224) -> np.ndarray:
    """(3, size, size) float32."""
    cut = path.cut_of(image, size)
    resized = image.resize((cut.width, cut.height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized.crop((cut.left, cut.top, cut.left + size, cut.top + size)))
    values = (pixels.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def on(instructions: str, image: Image.Image) -> torch.Tensor:
    """What preprocess() does, on one instruction set."""
    out = torch.empty(1, 3, 224, 224)
    cut = path.cut_of(image, 224)
    given = [(path._memory(cut.image), *cut.image.size, *cut[1:])]
    path._C.resample(given, out.numpy(), False, path.level_values(torch.float32).numpy(), 1, instructions)
    return out


def measure(image: Image.Image, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds a picture of the core's time, and how many times as fast as the peer, turn by turn.

    Time in which the core worked for other processes does not count: it falls on long calls rather than on short ones.
    """
    assert np.array_equal(by_pillow_and_numpy(image), path.preprocess(image).numpy())
    calls: dict[str, Callable[[Any], Any]] = {
        PEER: lambda _: by_pillow_and_numpy(image),
        "ours": lambda _: path.preprocess(image),
        "ours, float16": lambda _: path.preprocess_batch([image], dtype=torch.float16, threads=1),
        "ours, uint8": lambda _: path.preprocess_batch([image], dtype=torch.uint8, threads=1),
    }
    for name in path._C.instruction_sets():
        calls[f"ours, {name}"] = lambda _, name=name: on(name, image)
    found = time_in_turn(calls, torch.empty(0), rounds, time.thread_time)
    return {name: {"ms": 1000 * own.median, "times as fast": own.speedup} for name, own in found.items()}


def batch_on_all_cores(image: Image.Image) -> dict[str, float]:
    """Milliseconds a picture of a batch on one thread and on all, by the clock, and the ratio."""
    threads = os.cpu_count() or 1
    calls: dict[str, Callable[[Any], Any]] = {
        "one": lambda _: path.preprocess_batch([image] * BATCH, threads=1),
        "all": lambda _: path.preprocess_batch([image] * BATCH, threads=threads),
    }
    found = time_in_turn(calls, torch.empty(0), 20)
    one, several = (1000 * found[name].median / BATCH for name in ("one", "all"))
    return {"ms, 1 thread": one, f"ms, {threads} threads": several, "times as fast": found["all"].speedup}


def main(arguments: list[str]) -> None:
    if path._C is None:
        raise SystemExit("the extension was not built; install a C++17 compiler and run pip install -e . again")
    rows = []
    for (width, height), rounds in SIZES.items():
        found = measure(photo(width, height), rounds)
        rows.append({"width": width, "height": height, "measured": found})
        print(f"{width}x{height} to 224x224")
        print("\n".join(FIGURES.lines((name, *figures.values()) for name, figures in found.items())))
    batch = batch_on_all_cores(photo(500, 375))
    print(f"{BATCH} of 500x375\n  " + ", ".join(f"{name} {figure:.3f}" for name, figure in batch.items()))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {path.image_path()}"
    result = {"machine": machine, "pillow": PIL.__version__, "numpy": np.__version__, "rows": rows, "batch": batch}
    if arguments:
        Path(arguments[0]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
