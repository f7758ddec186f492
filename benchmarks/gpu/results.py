"""The result file: read, merged and written again after every measurement, so that a killed run loses nothing.

Results of different machines (GPU, driver or versions) stand side by side in it and never mix.
"""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Key = tuple[str | int, ...]
KEYS = {
    "steps": ("name",),
    "checks": ("problem",),
    "points": ("implementation", "variant", "batch"),
    "kernels": ("variant", "batch", "precision"),
    "counters": ("problem", "kernel"),
    "tests": ("name",),
}
ABOUT = {
    "machine": "what makes numbers comparable; each machine has its own entry in `machines`",
    "settings": "what else there was when the last run began, as nvidia-smi words it",
    "steps": "how each step of the suite went, in the order in which they ended; earlier: in a run before the last",
    "ceilings": "measured on it: bytes read and written, by a copy in memory and by torch.neg in the L2 cache, where "
    "tensors are held to stay up to l2_bytes; flops_per_second, the best of `products` by precision; gap and "
    "dependent_gap, the seconds that a kernel which does nothing takes in a CUDA graph, without and with programmatic "
    "dependent launch",
    "products": "operations per second of PyTorch's matrix products, by MxNxK and precision; int8 writes int32",
    "points": "one implementation, variant and batch of 224x224 images, fp16 except ours int8 and ours fp8, whose "
    "products are in 8 bits; weights and images random",
    "kernels": "every different operation of our network alone in a CUDA graph, weights not in the L2 cache",
    "precision": "of products; what lies between them is in fp16",
    "checks": "every different operation in fp16 at its real size: error and bound are relative, against float64",
    "bound": "of a check, twice PyTorch's own error or a few roundings; of a kernel, which term of its floor is the "
    "larger one: memory, products or launch",
    "counters": "the heaviest kernels under ncu, at the clocks as they are: its metrics, in its words",
    "tests": "test files on this GPU, with the tests that failed, and compute-sanitizer's tools",
    "ceilings, of a row": "assumed, an H100's: none were measured; see steps.ASSUMED",
    "stopped": "it took longer than it may",
    "cut": "the suite's time was over first: nothing is known",
    "commit, source": "of the code that was measured; source is a hash of the package's files",
    "failed": "why there is no figure: the error, the signal it died of, or the time it was stopped after",
    "ms, ms_low, ms_high": "a call, by CUDA events: median, 20 % and 80 % quantile, inputs already on the GPU",
    "ours_speedup, ours_ms": "timed in turn with this peer in one process: the peer's time / ours, median of rounds",
    "previous_ms": "of a point that was measured again: the figure it replaces",
    "flops, bytes": "what the fused network must do: 2 x multiply-adds of its products; each input of each operation "
    "read once, each output written once, tokens in fp32. The same for every implementation of a precision: tflops and "
    "gbs are useful work",
    "floor_ms": "sum over operations of the longer of two times, by that run's ceilings: to move its bytes, those of "
    "activations that fit l2_bytes at the L2 cache's rate, and to do its flops",
    "launch_floor_ms, dependent_launch_floor_ms": "the same with no operation shorter than gap, or dependent_gap, one "
    "after another; ours runs some beside others at small batches",
    "fused_floor_ms": "the same with each 3x3 convolution of the first two stages one kernel with the 1x1 after it",
    "share_of_floor, share_of_fused_floor": "floor_ms / ms, fused_floor_ms / ms",
    "error": "||x - reference|| / ||reference|| of both heads' summed scores, reference in float64; null: not finite",
    "peak_bytes": "GPU memory that PyTorch holds while it runs, weights included, other processes and CUDA itself not",
    "build_seconds": "from the fp32 model to the third call",
    "us, floor_us, times_floor": "an operation, its floor (the gap at least), and the quotient",
    "pytorch_us": "the same call by PyTorch, in a CUDA graph too",
    "apart_us": "a pair of 1x1 convolutions as two of our kernels",
    "choice": "the tile m, n, k, warps, stages of our kernel, or pytorch",
}


class Results:
    """The entry of one machine in the file at `path`; `stamp` (commit, source) is put on every new row.

    resume: another result file, whose entries the new one begins with
    origin: what they are, for the reader

    Raises ValueError if either is no result file, or if both are there.
    """

    def __init__(self, path: Path, machine: dict[str, Any], stamp: dict[str, str], resume: Path | None = None) -> None:
        self.path, self.stamp = path, dict(stamp)
        if resume and path.exists() and not path.samefile(resume):
            raise ValueError(f"{path} is there already: it would be lost by resuming {resume}; give another folder")
        earlier = resume or path
        self._all: dict[str, Any] = {"about": ABOUT, "machines": []}
        if resume or path.exists():
            self._all["machines"] = read(earlier)
        same = [entry for entry in self._all["machines"] if entry["machine"] == machine]
        self.entry: dict[str, Any] = same[0] if same else {"machine": machine}
        for section in KEYS:
            self.entry.setdefault(section, [])
        if not same:
            self._all["machines"].append(self.entry)
        self.origin = self._described(earlier, machine)

    def _described(self, earlier: Path, machine: dict[str, Any]) -> str:
        others = [entry["machine"] for entry in self._all["machines"] if entry is not self.entry]
        rows = [row for section in KEYS for row in self.entry[section]]
        if rows:
            same = sum(row["source"] == self.stamp["source"] for row in rows)
            return f"resumes {earlier}: this machine, {same} of {len(rows)} rows of this source"
        if others:
            differing = {name: value for name, value in machine.items() if others[-1].get(name) != value}
            return f"resumes {earlier}, which has other machines only: here {differing}"
        return "begins anew"

    def find(self, section: str, key: Key) -> dict[str, Any] | None:
        return next((row for row in self.entry[section] if _key(section, row) == key), None)

    def put(self, section: str, key: Key, row: dict[str, Any]) -> dict[str, Any]:
        """Adds a row or replaces the one with the same key, and writes the file."""
        before = self.find(section, key)
        named = dict(zip(KEYS[section], key, strict=True))
        row = {**named, **_finite(row), **self.stamp, "date": datetime.now(UTC).isoformat(timespec="microseconds")}
        if before is not None:
            self.entry[section].remove(before)
            if "ms" in before and "ms" in row:
                row["previous_ms"] = before["ms"]
        self.entry[section].append(row)
        self.write()
        return row

    def update(self, values: dict[str, Any]) -> None:
        """Sets values of the entry, and writes the file."""
        self.entry |= _finite(values)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")  # nothing of ours is installed in this process, so no replace_file
        draft.write_text(json.dumps(self._all, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, self.path)


def _finite(value: Any) -> Any:
    """The same with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a result file. Raises ValueError, naming it, if it is none, or is not there."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["machines"]
        for entry in entries:
            assert isinstance(entry["machine"], dict)
            assert all(row["source"] for section in KEYS for row in entry.get(section, []))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there, so nothing can be resumed") from None
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
        raise ValueError(f"{path} is not a result file of this suite; move it away") from None
    return entries


def _key(section: str, row: dict[str, Any]) -> Key:
    return tuple(row[name] for name in KEYS[section])
