"""Which precision is the fastest on this CPU, and whether images of a batch run side by side: measured.

An Intel Emerald Rapids without AMX lists bfloat16 and takes 1.7 times as long for products in it as in fp32; a Zen 5
gains by it. So a sample of the network's kinds of work is timed in each precision, once: the result is kept on disk.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformer_fast.errors import ConformerFastError

from ..cache import remembered
from . import executors
from .device import PRECISIONS, describe, native_precisions
from .runtime import ov

ROUNDS = 15
GAIN = 1.05  # over fp32: what gains less is not worth its rounding
TOKENS, WIDTH, HIDDEN, HEADS, HEAD = 197, 384, 1536, 6, 64  # small-p16's, as are its first maps:
SIDE, CHANNELS, NARROW = 56, 256, 64
# For the key of what is kept: another sample, or another way of timing it, needs another name.
MEASURED = "mlp, attention, bottleneck of small-p16 on one thread, medians of 15 rounds"

SPLIT = "mlp, attention, bottleneck of small-p16, a thread an image over all for one, medians of 15 rounds"

_lock = threading.Lock()
_known: dict[tuple[str, ...], dict[str, float]] = {}
_splits: dict[tuple[int, str], float] = {}


def speeds() -> dict[str, float]:
    """How many times as fast as in fp32 the CPU is in each precision that it lists beside it.

    Measured in about half a second where it is not known yet; all threads, and all processes with the same cache, wait
    for one that measures. Raises RuntimeError or ConformerFastError where that cannot be done.
    """
    native = native_precisions()
    if native == ("fp32",):
        return {}
    with _lock:
        if native not in _known:
            fields = {"measured": MEASURED, "precisions": list(native), **describe()}
            kept = _parsed(remembered(fields, lambda: json.dumps(measured()), "speeds"))
            _known[native] = kept if _plausible(kept, native) else measured()
        return _known[native]


def fastest(speeds: Mapping[str, float]) -> str:
    """Of such speeds the precision that "auto" takes, and that stands around products in 8 bits. Not fp16: a trained
    model may leave its range, and nothing has shown yet that none does."""
    best = max((name for name in speeds if name != "fp16"), key=speeds.__getitem__, default="fp32")
    return best if speeds.get(best, 0.0) > GAIN else "fp32"


def split_gain(threads: int, precision: str) -> float:
    """How many times as fast as many images as threads run side by side, a thread each, as one after another, each on
    all threads.

    Measured where it is not known yet, as `speeds` are. 1 where that cannot be done.
    """
    with _lock:
        if (threads, precision) not in _splits:
            fields = {"measured": SPLIT, "threads": threads, "precision": precision, **describe()}
            try:
                kept = _parsed(remembered(fields, lambda: json.dumps(measured_split(threads, precision)), "speeds"))
            except (RuntimeError, ConformerFastError):
                kept = 1.0
            sound = isinstance(kept, float) and 0 < kept < math.inf
            _splits[threads, precision] = kept if sound else measured_split(threads, precision)
        return _splits[threads, precision]


def measured_split(threads: int, precision: str) -> float:
    """`split_gain`: the median over rounds in which both take turns."""
    together, alone = _requests(precision, threads, threads), _requests(precision, 1, threads)
    gains = []
    for _ in range(1 + ROUNDS):
        gains.append(1 / seconds_together(together) * sum(_seconds(alone[0]) for _ in together))
    return round(statistics.median(gains[1:]), 3)


def measured() -> dict[str, float]:
    """`speeds`: medians over rounds in which all precisions take turns, so that they meet the same noise.

    By one thread, as each image of a batch is run, whatever the other cores are busy with. Of two equal engines beside
    two busy processes on two cores it found 0.79 to 1.06.
    """
    requests = {precision: _requests(precision, 1, 1)[0] for precision in native_precisions()}
    ratios: dict[str, list[float]] = {precision: [] for precision in requests if precision != "fp32"}
    for turn in range(1 + ROUNDS):
        seconds = {precision: _seconds(request) for precision, request in requests.items()}
        for precision, values in ratios.items():
            if turn > 0:  # the first warms up
                values.append(seconds["fp32"] / seconds[precision])
    return {precision: round(statistics.median(values), 3) for precision, values in ratios.items()}


def _requests(precision: str, streams: int, threads: int) -> list[ov.InferRequest]:
    """A request for each stream."""
    hint = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    split = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}
    compiled, random = executors.compile_for_good(_sample(), hint | split), np.random.default_rng(1)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    for request in requests:
        for index, given in enumerate(compiled.inputs):
            request.set_input_tensor(index, ov.Tensor(random.standard_normal([*given.shape], np.float32)))
    return requests


def seconds_together(requests: Sequence[ov.InferRequest]) -> float:
    """Until the last of them, started at the same time, has ended."""
    start = time.perf_counter()
    for request in requests:
        request.start_async()
    for request in requests:
        request.wait()
    return time.perf_counter() - start


def _seconds(request: ov.InferRequest) -> float:
    start = time.perf_counter()
    request.infer()
    return time.perf_counter() - start


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _plausible(kept: Any, native: tuple[str, ...]) -> bool:
    """Whether it is what `measured` returns: another version may have kept something else under the same key."""
    return (
        isinstance(kept, dict)
        and {"fp32", *kept} == set(native)
        and all(isinstance(value, float) and 0 < value < math.inf for value in kept.values())
    )


def _sample() -> ov.Model:
    """A transformer's MLP and attention and a bottleneck, side by side."""
    op, random = ov.opset13, np.random.default_rng(0)
    inputs, results = [], []

    def given(*shape: int) -> ov.Node:
        inputs.append(op.parameter(list(shape), np.float32))
        return inputs[-1]

    def conv(value: ov.Node, channels: int, size: int = 1) -> ov.Node:
        weight = random.standard_normal((channels, value.shape[1], size, size), np.float32)
        pad = [size // 2] * 2
        return op.convolution(value, weight, [1, 1], pad, pad, [1, 1])

    tokens = given(1, WIDTH, 1, TOKENS)
    results.append(op.add(conv(op.gelu(conv(tokens, HIDDEN), "erf"), WIDTH), tokens))
    query, key, value = (given(1, HEADS, TOKENS, HEAD) for _ in range(3))
    scores = op.softmax(op.matmul(query, key, False, True), -1)
    results.append(op.matmul(scores, value, False, False))
    feature_map = given(1, CHANNELS, SIDE, SIDE)
    inner = op.relu(conv(op.relu(conv(feature_map, NARROW)), NARROW, 3))
    results.append(op.relu(op.add(conv(inner, CHANNELS), feature_map)))
    return ov.Model(results, inputs)


def _after_fork() -> None:
    """In the child: the lock may have been another thread's."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
