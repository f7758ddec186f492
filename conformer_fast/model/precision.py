"""The precisions there are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # of products in 8 bits


def around(precision: str) -> str:
    """What lies between products of this precision: the same, or fp16 around 8 bits."""
    return precision if precision in DTYPES else "fp16"


def tf32_as_asked(dtype: torch.dtype) -> AbstractContextManager:
    """Inside, cuDNN's convolutions of fp32 use TF32 only if PyTorch's settings allow it to products.

    PyTorch lets them use it by default. The setting is the whole process's.
    """
    cudnn: Any = torch.backends.cudnn
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    if dtype != torch.float32 or not exact or cudnn.conv.fp32_precision != "tf32":
        return nullcontext()
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    return cudnn.flags(**kept, allow_tf32=False)
