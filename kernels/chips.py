"""What the tile rules must know of a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class Chip:
    """capability: 10 * major + minor. sms: multiprocessors. shared: bytes of shared memory that one block may have.
    driver: the newest CUDA that its driver knows, as 1000 * major + 10 * minor."""

    name: str
    capability: int
    sms: int
    shared: int
    driver: int = 13000

    @property
    def reads_shared(self) -> bool:
        """Whether matrix instructions read both operands from shared memory (wgmma, tcgen05), not from registers."""
        return 90 <= self.capability < 120


# The chips that kernels are compiled ahead of time for. Sizes: CUDA C++ Programming Guide, "Compute Capabilities";
# multiprocessors of the largest part sold with that capability.
CHIPS = {
    chip.capability: chip
    for chip in (
        Chip("NVIDIA A100", 80, 108, 163 * 1024),
        Chip("NVIDIA RTX 3090", 86, 82, 99 * 1024),
        Chip("NVIDIA RTX 4090", 89, 128, 99 * 1024),
        Chip("NVIDIA H100", 90, 132, 227 * 1024),
        Chip("NVIDIA B200", 100, 148, 227 * 1024),
        Chip("NVIDIA RTX 5090", 120, 170, 99 * 1024),
    )
}
_assumed: ContextVar[Chip] = ContextVar("assumed", default=CHIPS[90])


@contextmanager
def assuming(chip: Chip):
    """Plans for tensors that are on no GPU are made for this chip, in place of an H100."""
    token = _assumed.set(chip)
    try:
        yield
    finally:
        _assumed.reset(token)


def chip_of(device: torch.device) -> Chip:
    """The GPU that `device` is; the assumed one for the CPU and for meta tensors."""
    if device.type != "cuda":
        return _assumed.get()
    return _chip(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _chip(index: int) -> Chip:
    properties = torch.cuda.get_device_properties(index)
    shared = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    capability = 10 * properties.major + properties.minor
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # PyTorch's stubs leave it out
    return Chip(properties.name, capability, properties.multi_processor_count, shared, driver)
