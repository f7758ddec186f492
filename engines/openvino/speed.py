"""Which precision is the fastest on this CPU: measured, as what a CPU lists it may be slow in.

An Intel Emerald Rapids without AMX lists bfloat16 and takes 1.7 times as long for products in it as in fp32; a Zen 5
gains by it. So a sample of the network's kinds of work is timed in each precision, once: the result is kept on disk.
"""

from __future__ import annotations

import json
import time
from functools import cache

import numpy as np

from ..cache import remembered
from . import executors
from .cpu import PRECISIONS, describe_cpu, native_precisions
from .runtime import ov

ROUNDS = 8  # of which the fastest counts: other work on the machine only adds to the time
WORTH = 0.95  # of fp32's time: what gains less is not worth its rounding
TOKENS, WIDTH, HIDDEN, HEADS, HEAD = 197, 384, 1536, 6, 64  # small-p16's, as are its first maps:
SIDE, CHANNELS, NARROW = 56, 256, 64
SAMPLE = "mlp, attention, bottleneck of small-p16"  # for the key of what is kept; another sample has another name


@cache
def seconds_by_precision(threads: int) -> dict[str, float]:
    """Of one run of the sample, by precision, fp32 first; measured in about half a second where it is not known yet.

    threads: cores to use
    """
    if native_precisions() == ("fp32",):
        return {"fp32": 1.0}
    fields = {"measured": SAMPLE, "threads": threads, **describe_cpu()}
    return json.loads(remembered(fields, lambda: json.dumps(measured(threads))))


def speeds(threads: int) -> dict[str, float]:
    """How many times as fast as in fp32, by precision."""
    seconds = seconds_by_precision(threads)
    return {name: round(seconds["fp32"] / time, 2) for name, time in seconds.items()}


def fastest(threads: int) -> str:
    """The precision that "auto" takes, and that stands around products in 8 bits."""
    seconds = seconds_by_precision(threads)
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < WORTH * seconds["fp32"] else "fp32"


def measured(threads: int) -> dict[str, float]:
    """`seconds_by_precision`, in turn, so that all meet the same noise."""
    requests = {}
    for precision in native_precisions():
        options = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "NUM_STREAMS": "1"}
        options["INFERENCE_NUM_THREADS"] = str(threads)
        requests[precision] = executors.compile_for_good(_sample(), options).create_infer_request()
    seconds: dict[str, list[float]] = {precision: [] for precision in requests}
    for _ in range(1 + ROUNDS):
        for precision, request in requests.items():
            start = time.perf_counter()
            request.infer()
            seconds[precision].append(time.perf_counter() - start)
    return {precision: min(times[1:]) for precision, times in seconds.items()}


def _sample() -> ov.Model:
    """A transformer's MLP and attention and a bottleneck, side by side, on random numbers."""
    op, random = ov.opset13, np.random.default_rng(0)
    inputs, results = [], []

    def given(*shape: int) -> ov.Node:
        """An input, which a request fills with what there is."""
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
