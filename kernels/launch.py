"""Between the launchers and Triton: a kernel is launched, or only recorded to be compiled ahead of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .chips import chip_of
from .dependent import can_be_dependent
from .tiles import Tile


@dataclass(frozen=True)
class Plan:
    """How one call of an operation would run.

    problem:     what decides its speed, as a key of the tuned tables: "linear fp16 M25216 N1536 K384 gelu"
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
    """Runs `kernel` on `grid` with the warps and stages of `tile`, on the current stream of the tensors' device.

    `arguments` are all but DEPENDENT and, of kernels that fetch their weight before they wait, ALONE.
    """
    recorded = _recorded.get()
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    chip = chip_of(device)
    able = can_be_dependent(chip) and (recorded is not None or device.type == "cuda")  # the interpreter is not
    arguments["DEPENDENT"] = able
    if "ALONE" in kernel.arg_names:
        arguments["ALONE"] = able and math.prod(grid) <= chip.sms
    if recorded is not None:
        recorded.append(Launch(kernel, grid, tile, arguments))
        return
    options = {"num_warps": tile.warps, "num_stages": tile.stages, **OPTIONS}
    if arguments["DEPENDENT"]:
        options["launch_pdl"] = True
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
STORED = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


class Scales(NamedTuple):
    """Of a product in 8 bits: of its input, of its weight's output channels and, if it is in 8 bits, of what it adds.
    Kernels read a tensor in place of one that is missing, and ignore it."""

    input: Tensor | None
    weight: Tensor | None
    addend: Tensor | None = None

    def arguments(self, instead: Tensor) -> dict[str, Any]:
        """The kernels' arguments; `instead` is the tensor in place of a missing one."""
        return {
            "input_scale_ptr": instead if self.input is None else self.input,
            "weight_scale_ptr": instead if self.weight is None else self.weight.contiguous(),
            "SCALED": self.weight is not None,
        }


class Kept(NamedTuple):
    """A result that is kept as its readers take it: numbers of `dtype` at `scale`. None: in its own type."""

    scale: Tensor | None = None
    dtype: torch.dtype | None = None


def words_of_8_bits(x: Tensor | None = None, **results: Kept) -> list[str]:
    """What a problem says of operands that are in 8 bits in memory: "reads8" of x, "out8" of a result `out`."""
    reads = x is not None and x.dtype in STORED
    return ["reads8"] * reads + [f"{name}8" for name, kept in results.items() if kept.dtype]


def unsupported_dtype(weight: Tensor, scales: Scales | None = None) -> str | None:
    """Why no kernel takes products of this dtype, or None."""
    if scales is None or scales.weight is None:
        types: dict[torch.dtype, str] = DTYPES
    else:
        types = STORED
    if weight.dtype not in types:
        return f"kernels compute in {', '.join(types.values())}, the weight is {weight.dtype}"
    if weight.dtype != torch.float8_e4m3fn:
        return None
    if interpreted():
        return "Triton's interpreter does not round to FP8 as GPUs do"
    chip = chip_of(weight.device)
    if chip.capability < 89:
        return f"products in FP8 need compute capability 8.9, {chip.name} has {chip.capability / 10}"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return triton.knobs.runtime.interpret


def product_type(weight: Tensor, around: Tensor | None = None) -> str:
    """What products with this weight are computed in, as problems name it; in 8 bits with the type `around` them."""
    if weight.dtype in STORED and around is not None:
        return f"{STORED[weight.dtype]}-{product_type(around)}"
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
