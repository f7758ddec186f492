"""How fast this CPU multiplies at most: the best rate that OpenVINO reaches for any of SHAPES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from conformer_fast.model.precision import FORMATS

from . import executors
from .device import CPU, PRECISIONS, instruction_limit
from .runtime import core, ov
from .speed import seconds_together

# Of convolutions: input channels, output channels, height, width, pixels of a side of the kernel.
SHAPES = ((384, 1536, 1, 784, 1), (1024, 1024, 1, 1024, 1), (2048, 2048, 1, 512, 1), (256, 256, 28, 28, 3))
ROUNDS = 10


def product_rates(precisions: Sequence[str], threads: int) -> dict[str, float]:
    """Operations a second of the best product in each precision on so many threads, a multiplication and an addition
    being two. Measured once a process."""
    return {precision: _best(precision, threads, instruction_limit()) for precision in precisions}


@cache
def _best(precision: str, threads: int, limit: str | None) -> float:
    return max(_rate(precision, threads, *shape) for shape in SHAPES)


def _rate(precision: str, threads: int, inputs: int, outputs: int, height: int, width: int, size: int) -> float:
    """With as many requests at a time as threads, and with one that takes them all: the better."""
    random, op = np.random.default_rng(0), ov.opset13
    given = op.parameter([1, inputs, height, width], np.float32)
    weight: Any = random.standard_normal((outputs, inputs, size, size), np.float32)
    image: Any = given
    if precision in FORMATS:
        image = op.fake_quantize(given, *(np.float32(end) for end in (0, 255, 0, 255)), 256)
        stored = op.convert(np.clip(np.rint(40 * weight), -127, 127).astype(np.int8), np.float32)
        weight = op.multiply(stored, np.full((outputs, 1, 1, 1), 0.5, np.float32))
    pad = [size // 2] * 2
    product = op.convolution(image, weight, [1, 1], pad, pad, [1, 1])
    model = ov.Model([op.reduce_max(op.relu(product), np.array([1, 3]), False)], [given])
    hint = {"INFERENCE_PRECISION_HINT": PRECISIONS.get(precision, "f32")}
    operations = 2 * inputs * outputs * height * width * size**2
    return max(
        requests * operations / _seconds(model, {**hint, **_split(requests, threads)}, requests)
        for requests in {1, threads}
    )


def _split(streams: int, threads: int) -> dict[str, str]:
    return {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}


def _seconds(model: ov.Model, options: Mapping[str, str], count: int) -> float:
    """The least that so many requests at a time took, after a first time."""
    executors.take(executors.key_of(options))
    try:
        compiled = core().compile_model(model, CPU, dict(options))
        requests = [compiled.create_infer_request() for _ in range(count)]
        return min([seconds_together(requests) for _ in range(1 + ROUNDS)][1:])
    finally:
        executors.give_back(executors.key_of(options))
