"""Between the launchers and Triton: a kernel is launched, or only recorded to be compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ._chips import chip_of
from ._tiles import Tile


@dataclass(frozen=True)
class Plan:
    """How one call of an operation would run.

    problem:     what decides its speed, as a key of the tuned tables: "linear fp16 M25216 N1152 K384 norm"
    unsupported: why the kernel cannot take this call, or None; PyTorch runs it then
    tiles:       the tiles worth measuring; the first is the rule's choice
    launch:      runs the kernel with a tile and returns the operation's output
    """

    problem: str
    unsupported: str | None
    tiles: tuple[Tile, ...]
    launch: Callable[[Tile], Any]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its arguments by name, tensors and numbers and constants alike."""

    kernel: Any
    grid: tuple[int, ...]
    tile: Tile
    arguments: dict[str, Any]


OPTIONS = {"enable_fp_fusion": True}  # fused multiply-adds, whatever the Triton version's default

_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects what would be launched and launches nothing, for tensors without data (device "meta")."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Runs `kernel` on `grid` with the warps and stages of `tile`, on the current stream of the tensors' device."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(Launch(kernel, grid, tile, arguments))
        return
    options = {"num_warps": tile.warps, "num_stages": tile.stages, **OPTIONS}
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments, **options)
    else:
        kernel[grid](**arguments, **options)


_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepared(weight: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """prepare(weight), a weight in the order its kernel reads, made once for as long as `weight` lives unchanged."""
    version = 0 if weight.is_inference() else weight._version  # inference tensors carry no version
    found = _prepared.get(weight)
    if found is None or found[0] != version:
        found = _prepared[weight] = version, prepare(weight.detach())  # a view of `weight` would keep it alive
    return found[1]


DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def unsupported_dtype(weight: Tensor) -> str | None:
    """Why no kernel takes products of this dtype, or None."""
    if weight.dtype not in DTYPES:
        return f"kernels compute in {', '.join(DTYPES.values())}, the weight is {weight.dtype}"
    return None


def product_type(weight: Tensor) -> str:
    """What products with this weight are computed in, as problems name it."""
    if weight.dtype == torch.float32 and dot_precision() == "tf32":
        return "tf32"
    return DTYPES.get(weight.dtype, str(weight.dtype))


def dot_precision() -> str:
    """How products of fp32 are computed: exactly, unless PyTorch was told that TF32 is good enough.

    Not by torch.get_float32_matmul_precision: it raises once a user has set this newer name.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def must_wait(weight: Tensor, computed: bool) -> bool:
    """Whether a loop of products must finish each before its next step, if the left operand is `computed` on the way.

    Hopper's products run on while the program goes on, and read a computed operand from registers. Triton 3.6 lets the
    next step overwrite those too early (triton-lang/triton#9433, #9514). A kernel waits by selecting the sum under a
    condition that always holds: Triton waits before it, LLVM then removes it. Blackwell's compiler does not take that.
    """
    return computed and chip_of(weight.device).capability == 90
