"""Samples of calls, and the judge of kernels (benchmarks/judge.py) as an assertion.

On a machine without a GPU the kernels run in Triton's interpreter on the CPU, with one the same tests run on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import quick_interpreter  # noqa: F401 - it changes the interpreter
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from benchmarks.judge import FLOOR, judge
from conformer_fast.kernels import dispatch, launch
from conformer_fast.kernels.tiles import Tile


def _dot_of_bfloat16(create_dot=interpreter.InterpreterBuilder.create_dot):
    """The interpreter keeps bfloat16 as bit patterns and multiplies those (triton-lang/triton#11584)."""

    def value(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar == tl.float8e4nv:
            return interpreter.TensorHandle(_from_fp8(handle), tl.float32)
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), tl.float32)

    return lambda self, a, b, *rest: create_dot(self, value(a), value(b), *rest)


def _rounding_to_bfloat16(cast_impl=interpreter.InterpreterBuilder.cast_impl):
    """The interpreter cuts off what bfloat16 does not hold, a GPU rounds to the nearest."""

    def cast(self, source: interpreter.TensorHandle, to: tl.dtype) -> interpreter.TensorHandle:
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast_impl(self, source, to)
        rounded = torch.from_numpy(source.data.copy()).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    return cast


def _rounding_to_fp8(create_fp_to_fp=interpreter.InterpreterBuilder.create_fp_to_fp):
    """The interpreter rounds ties away from zero, cuts off what is subnormal, and forgets the carry: 7.8 becomes 4."""

    def cast(self, source: interpreter.TensorHandle, to: tl.dtype, mode: Any) -> interpreter.TensorHandle:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.float8e4nv:
            rounded = torch.from_numpy(source.data.copy()).to(torch.float8_e4m3fn)
            return interpreter.TensorHandle(rounded.view(torch.uint8).numpy(), tl.float8e4nv)
        if source.dtype.scalar == tl.float8e4nv and to.scalar == tl.float32:
            return interpreter.TensorHandle(_from_fp8(source), tl.float32)
        return create_fp_to_fp(self, source, to, mode)

    return cast


def _from_fp8(handle: interpreter.TensorHandle) -> Any:
    return torch.from_numpy(handle.data.copy()).view(torch.float8_e4m3fn).float().numpy()


launch.interpreted = lambda: False  # as it is corrected here, it may run FP8
interpreter.InterpreterBuilder.create_fp_to_fp = _rounding_to_fp8()
interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16()
interpreter.InterpreterBuilder.cast_impl = _rounding_to_bfloat16()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", FLOOR, ids=lambda dtype: str(dtype).removeprefix("torch."))


class Shape(tuple):
    """A tensor argument's shape; it has the precision of products."""


class Fine(Shape):
    """The shape of tokens, or of what goes with them: float32 whatever the precision of products."""


class Sample(NamedTuple):
    """One call of `operation`: tensors are given as shapes. A label names what is hostile about it."""

    label: str
    operation: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.operation}-{self.label}"


def shape(*sizes: int) -> Shape:
    return Shape(sizes)


def fine(*sizes: int) -> Fine:
    return Fine(sizes)


def make(sample: Sample, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """The sample's arguments on DEVICE with random values; weights are scaled so that results are near 1."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(sizes: Shape) -> Tensor:
        values = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return values.to(torch.float32 if isinstance(sizes, Fine) else dtype).to(DEVICE)

    return [tensor(argument) if isinstance(argument, Shape) else argument for argument in sample.arguments]


def check(operation: str, arguments: list[Any], tile: Tile | None = None, floor: float = 0.0) -> None:
    """Asserts that the kernel of `operation`, with this tile or the rule's, is within `judge`'s bounds."""
    plan = dispatch.PLANS[operation](*arguments)
    assert plan.unsupported is None, plan.unsupported
    tile = tile or plan.tiles[0]
    for index, verdict in enumerate(judge(operation, plan, arguments, tile, floor)):
        assert verdict.within, f"output {index}: {verdict.error:.2e} > {verdict.bound:.2e}; {tile}"


def layouts(arguments: list[Any]) -> Iterator[list[Any]]:
    """The same values with other strides: inside larger tensors of NaN, and in reversed memory order."""

    def inside(tensor: Tensor) -> Tensor:
        poison = 127 if tensor.dtype == torch.int8 else torch.nan
        larger = torch.full([size + 2 for size in tensor.shape], poison, dtype=tensor.dtype, device=tensor.device)
        return larger[(slice(1, -1),) * tensor.ndim].copy_(tensor)

    def reversed_order(tensor: Tensor) -> Tensor:
        dims = tuple(reversed(range(tensor.ndim)))
        return tensor.permute(dims).contiguous().permute(dims)

    for layout in (inside, reversed_order):
        yield [layout(a) if isinstance(a, Tensor) else a for a in arguments]


def launches(operation: str, arguments: list[Any]) -> list[launch.Launch]:
    """What the operation would launch, on tensors without data."""
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    plan = dispatch.PLANS[operation](*meta)
    with launch.recording() as recorded:
        plan.launch(plan.tiles[0])
    return recorded
