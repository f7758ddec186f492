"""The machine: what makes numbers comparable, and its ceilings, measured."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch
import triton

from . import clock

COPY_BYTES = 2 << 30  # of the tensor that is copied, unless the GPU is too small
MATRIX = 8192  # side of the square product
LAUNCHES = 1000  # of an empty kernel, in one graph


@triton.jit
def empty_kernel():
    pass


def measure() -> dict[str, Any]:
    return {"machine": machine(), "ceilings": ceilings()}


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties()
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def driver() -> str:
    """The driver's version, or "unknown" where nvidia-smi is missing."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0].strip() or "unknown"


def ceilings() -> dict[str, float]:
    """The arguments of roofline.Ceilings."""
    free, _ = torch.cuda.mem_get_info()
    source = torch.empty(min(COPY_BYTES, free // 4), dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(MATRIX, MATRIX, dtype=torch.float16, device="cuda") for _ in range(2))
    copy = clock.in_turn({"copy": lambda: target.copy_(source)})["copy"].median
    product = clock.in_turn({"product": lambda: a @ b})["product"].median
    gap = clock.of_graph([lambda: empty_kernel[(1,)]()] * LAUNCHES)
    return {"bytes_per_second": 2 * source.numel() / copy, "flops_per_second": 2 * MATRIX**3 / product, "gap": gap}
