"""What the backends on CUDA share."""

from __future__ import annotations

import threading

import torch

from conformer_fast.errors import ConformerFastError
from conformer_fast.model.detector.detect import PYTORCH, Operators

RECORDING = threading.Lock()  # PyTorch records one graph at a time in a process
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")  # in the messages of PyTorch and CUDA, of cuBLAS
CAPABILITY_FP8 = (8, 9)  # the oldest GPUs that multiply it


class GPUMemoryError(ConformerFastError, torch.OutOfMemoryError):
    """A batch that the GPU has no room for; `free` and `total` are bytes. Smaller batches still run."""

    def __init__(self, message: str, free: int, total: int) -> None:
        super().__init__(message)
        self.free, self.total = free, total


def bucket(batch: int) -> int:
    """How many rows run for `batch` images: 1, 2, 4, 8, then four sizes to each doubling: 10, 12, 14, 16, 20, 24, ...

    Fewer than half of the rows are spare up to 8, where a GPU is not full anyway, and fewer than a fifth beyond.
    """
    if batch <= 8:
        return 1 << (batch - 1).bit_length()
    step = 1 << ((batch - 1).bit_length() - 3)
    return -(-batch // step) * step


def current_device() -> str:
    return f"cuda:{torch.cuda.current_device()}"


def in_8_bits() -> tuple[str, ...]:
    """The 8-bit precisions that the current GPU multiplies."""
    return ("int8", "fp8") if torch.cuda.get_device_capability() >= CAPABILITY_FP8 else ("int8",)


def between_networks(device: str) -> Operators:
    """What is computed between a detector's networks: our kernels on a GPU, where they can be imported."""
    if torch.device(device).type != "cuda":
        return PYTORCH
    try:
        from conformer_fast.kernels.regions import read_regions
        from conformer_fast.kernels.suppress import nms
    except ImportError:  # their language is on Linux only
        return PYTORCH
    return Operators(nms, read_regions)
