"""The CPU that a result is of: its name and what it has. As a program: its folder's name.

The floor of a network is the time of its products alone, at the best rate that OpenVINO reached on this CPU for any of
some shapes (engines/openvino/products.py). Everything that stands between the products, and every weight and map that
is read, comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import cpuinfo
import torch

from conformer_fast.engines.openvino.device import instruction_limit
from conformer_fast.model.precision import FORMATS

from .gpu import roofline

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


def product_floor(variant: str, batch: int, precision: str, rates: Mapping[str, float], rest: str = "fp32") -> float:
    """Seconds of a network's products alone. rest: for 8 bits, what the others are computed in."""
    stored = precision in FORMATS
    operations = roofline.network(variant, batch, precision if stored else "fp32")
    others = rest if stored else precision
    return sum(
        operation.count * operation.flops / rates[precision if operation.precision == precision else others]
        for operation in operations
    )


if __name__ == "__main__":
    print(folder_name(identity()))
