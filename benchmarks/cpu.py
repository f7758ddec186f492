"""The CPU that a result is of: its name, what it has and how fast it multiplies. As a program: its folder's name.

The floor of a network is the time of its products alone, at the best rate that OpenVINO reached on this CPU for any of
SHAPES. Everything that stands between the products, and every weight and map that is read, comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cpuinfo
import numpy as np
import torch

from conformer_fast.engines.openvino.device import PRECISIONS, instruction_limit
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.engines.openvino.speed import seconds_together
from conformer_fast.model.precision import FORMATS

from .gpu import roofline

# Of convolutions: input channels, output channels, height, width, pixels of a side of the kernel.
SHAPES = ((384, 1536, 1, 784, 1), (1024, 1024, 1, 1024, 1), (2048, 2048, 1, 512, 1), (256, 256, 28, 28, 3))
ROUNDS = 10
FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
)


@cache
def identity() -> dict[str, Any]:
    """name, family and model: virtual machines often leave the name's number out; threads: of PyTorch, as all peers
    take as many; "limited to": the newest instructions that OpenVINO's products may use, if these are limited."""
    known = cpuinfo.get_cpu_info()
    flags = {flag.replace("avx512vnni", "avx512_vnni") for flag in known.get("flags", ())}
    return {
        "name": known.get("brand_raw") or known["arch_string_raw"],
        "family": known.get("family"),
        "model": known.get("model"),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "limited to": instruction_limit(),
    }


def folder_name(cpu: Mapping[str, Any]) -> str:
    """Of its results in benchmarks/results."""
    name = re.sub(r"\((r|tm)\)|@.*", " ", cpu["name"].lower())
    numbers = [f"{what} {cpu[what]}" for what in ("family", "model", "limited to") if cpu.get(what) is not None]
    return re.sub(r"[^a-z0-9]+", "-", " ".join([name, *numbers]).lower()).strip("-")


def product_rates(precisions: Sequence[str]) -> dict[str, float]:
    """Operations a second of the best product in each precision, a multiplication and an addition being two."""
    return {precision: max(_rate(precision, *shape) for shape in SHAPES) for precision in precisions}


def product_floor(variant: str, batch: int, precision: str, rates: Mapping[str, float], rest: str = "fp32") -> float:
    """Seconds of a network's products alone. rest: for 8 bits, what the others are computed in."""
    stored = precision in FORMATS
    operations = roofline.network(variant, batch, precision if stored else "fp32")
    others = rest if stored else precision
    return sum(
        operation.count * operation.flops / rates[precision if operation.precision == precision else others]
        for operation in operations
    )


def _rate(precision: str, inputs: int, outputs: int, height: int, width: int, size: int) -> float:
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
    threads, operations = torch.get_num_threads(), 2 * inputs * outputs * height * width * size**2
    return max(
        requests
        * operations
        / _seconds(core().compile_model(model, "CPU", {**hint, **_split(requests, threads)}), requests)
        for requests in {1, threads}
    )


def _split(streams: int, threads: int) -> dict[str, str]:
    return {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}


def _seconds(compiled: ov.CompiledModel, count: int) -> float:
    """The least that so many requests at a time took, after a first time."""
    requests = [compiled.create_infer_request() for _ in range(count)]
    return min([seconds_together(requests) for _ in range(1 + ROUNDS)][1:])


if __name__ == "__main__":
    print(folder_name(identity()))
