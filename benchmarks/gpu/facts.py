"""The machine: what makes numbers comparable, and its ceilings, measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
import triton
from torch import Tensor

from conformer_fast.engines.cuda import CAPABILITY_FP8
from conformer_fast.kernels.chips import chip_of
from conformer_fast.kernels.dependent import can_be_dependent, wait_for_earlier
from conformer_fast.model.distance import relative_error

from . import clock

DEVICE = "cuda"
COPY_BYTES = 2 << 30  # of the tensor that is copied, unless the GPU is too small
LAUNCHES = 1000  # of an empty kernel, in one graph
L2_LAUNCHES = 100
PRODUCT_LAUNCHES = 20
TOKENS = 128 * 197  # of a batch of 128, small-p16 and base-p16
# (M, N, K): a large product, then the transformer's qkv, proj, fc1 and fc2 for 384 and 576 channels
SHAPES = (
    (8192, 8192, 8192),
    *((TOKENS, N * C, K * C) for C in (384, 576) for N, K in ((3, 1), (1, 1), (4, 1), (1, 4))),
)


@triton.jit
def empty_kernel():
    pass


@triton.jit
def dependent_kernel():
    """Waits for the end of the one before, as all of ours do, and does nothing."""
    wait_for_earlier(True)


def first() -> Iterator[dict[str, Any]]:
    """What the machine is; then the error of one small product by our kernel, and the seconds from its call to its
    result, its compilation included."""
    found = {"machine": machine(), "settings": settings()}
    yield found
    from conformer_fast.kernels import dispatch

    x, weight = (torch.randn(64, 64, device=DEVICE).half() for _ in range(2))
    start = time.perf_counter()
    plan = dispatch.PLANS["linear"](x, weight, weight[0])
    ours = plan.launch(plan.tiles[0])
    torch.cuda.synchronize()
    exact = torch.nn.functional.linear(x.double(), weight.double(), weight[0].double())
    error = relative_error(ours, exact)
    yield found | {"kernel": {"error": error, "seconds": time.perf_counter() - start}}
    if not error < 1e-3:
        raise ValueError(f"a 64x64x64 product in fp16 is off by {error:.1e}")


def measure() -> Iterator[dict[str, Any]]:
    """What is known so far; dependent launch last: no ceiling depends on it."""
    gpu = torch.cuda.get_device_properties()
    rates = products((gpu.major, gpu.minor))
    yield {"products": rates}
    found = {"ceilings": {**ceilings(rates), "dependent_gap": None}, "products": rates}
    yield found
    if can_be_dependent(chip_of(torch.device(DEVICE))):
        launches = [lambda: dependent_kernel[(1,)](launch_pdl=True)] * LAUNCHES
        found["ceilings"]["dependent_gap"] = clock.of_graph(launches)
        yield found


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties()
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30),
        "driver": queried().get("driver_version") or "unknown",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


QUERIED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem", "power.limit")
QUERIED += ("temperature.gpu",)


def settings() -> dict[str, Any]:
    """What else may matter to a reader: clocks and power limit as nvidia-smi words them, the tools that are there."""
    tools = ("nvcc", "ncu", "compute-sanitizer", "make", "git", "gcc")
    return {
        **queried(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "tools": [tool for tool in tools if shutil.which(tool)],
    }


@cache
def queried() -> dict[str, str]:
    """nvidia-smi's answers for the first GPU, in one call, which may take a second; none where it has none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return {}
    return dict(zip(QUERIED, map(str.strip, done.stdout.partition("\n")[0].split(",")), strict=False))


def ceilings(rates: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The arguments of roofline.Ceilings but for dependent_gap. rates: what `products` measured."""
    gpu = torch.cuda.get_device_properties()
    free, _ = torch.cuda.mem_get_info()
    source = torch.empty(min(COPY_BYTES, free // 4), dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / clock.in_turn({"copy": lambda: target.copy_(source)})["copy"].median
    return {
        "bytes_per_second": copy,
        "l2_bytes": gpu.L2_cache_size // 2,
        "l2_bytes_per_second": max(copy, l2_bytes_per_second(gpu.L2_cache_size)),
        "flops_per_second": {
            precision: max(shape[precision] for shape in rates.values()) for precision in next(iter(rates.values()))
        },
        "gap": clock.of_graph([lambda: empty_kernel[(1,)]()] * LAUNCHES),
    }


def l2_bytes_per_second(cache: int) -> float:
    """Of kernels in a CUDA graph that read and write tensors within an L2 cache of so many bytes: how much longer twice
    as many bytes take, which leaves out what a launch takes. 0 where the cache is too small to tell."""
    sizes = cache // 16, cache // 8  # each read and written: at most a quarter of it is in use
    seconds = []
    for size in sizes:
        source = torch.zeros(size // 2, dtype=torch.float16, device=DEVICE)
        target = torch.empty_like(source)
        seconds.append(clock.of_graph([partial(torch.neg, source, out=target)] * L2_LAUNCHES))
    longer = seconds[1] - seconds[0]
    return 2 * (sizes[1] - sizes[0]) / longer if longer > 0 else 0.0


def products(capability: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Operations per second of PyTorch's matrix products in a CUDA graph, by shape (SHAPES) and precision."""
    precisions = [precision for precision in PRODUCTS if precision != "fp8" or capability >= CAPABILITY_FP8]
    return {
        f"{M}x{N}x{K}": {
            precision: 2 * M * N * K / clock.of_graph([PRODUCTS[precision](M, N, K)] * PRODUCT_LAUNCHES)
            for precision in precisions
        }
        for M, N, K in SHAPES
    }


def _fp16(M: int, N: int, K: int) -> Callable[[], Tensor]:
    x, weight = (torch.randn(rows, K, device=DEVICE).half() for rows in (M, N))
    return lambda: x @ weight.T


def _int8(M: int, N: int, K: int) -> Callable[[], Tensor]:
    x, weight = (torch.randint(-127, 128, (rows, K), dtype=torch.int8, device=DEVICE) for rows in (M, N))
    return lambda: torch._int_mm(x, weight.T)


def _fp8(M: int, N: int, K: int) -> Callable[[], Tensor]:
    x, weight = (torch.randn(rows, K, device=DEVICE).to(torch.float8_e4m3fn) for rows in (M, N))
    one = torch.ones((), device=DEVICE)
    return lambda: torch._scaled_mm(x, weight.T, one, one, out_dtype=torch.float16, use_fast_accum=True)


PRODUCTS = {"fp16": _fp16, "int8": _int8, "fp8": _fp8}
