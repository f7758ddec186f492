"""How every kernel is judged: against its oracle in float64, by the error that PyTorch itself makes in that precision.

On a machine without a GPU the kernels run in Triton's interpreter on the CPU, with one the same tests run on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from conformer_fast import functional as CF
from conformer_fast.cuda_graph import tf32_as_asked
from conformer_fast.kernels import _launch, dispatch
from conformer_fast.kernels._tiles import Tile
from conformer_fast.quantization import Quantization


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


_launch.interpreted = lambda: False  # as it is corrected here, it may run FP8
interpreter.InterpreterBuilder.create_fp_to_fp = _rounding_to_fp8()
interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16()
interpreter.InterpreterBuilder.cast_impl = _rounding_to_bfloat16()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED = (torch.int8, torch.float8_e4m3fn)
ALLOWANCE = 2.0  # times PyTorch's own error
FLOOR = {  # relative error that is always allowed: PyTorch happens to be exact on some small sums
    torch.float32: 1e-6,  # some roundings of 6e-8
    torch.float16: 5e-4,  # one rounding, 2^-11
    torch.bfloat16: 4e-3,  # one rounding, 2^-8
}
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


def in_8_bits(operation: str, arguments: list[Any], quantization: Quantization) -> list[Any]:
    """The same call in 8 bits: its weight stored, and the scales of the ranges of "input" and "addend"."""
    call = inspect.signature(getattr(CF, operation)).bind(*arguments)
    call.apply_defaults()
    weight = call.arguments["weight"]
    numbers, scale = quantization.weight(weight, axis=0)
    call.arguments |= {"weight": numbers.to(DEVICE), "weight_scale": scale.to(DEVICE)}
    call.arguments["input_scale"] = quantization.scale("input", weight.dtype).to(DEVICE)
    if call.arguments.get("residual") is not None and "addend_scale" in call.arguments:
        call.arguments["addend_scale"] = quantization.scale("addend", weight.dtype).to(DEVICE)
    return list(call.arguments.values())


def outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def error(value: Tensor, exact: Tensor) -> float:
    """||value - exact|| / ||exact||; NaN if anything is not finite."""
    return ((value.double() - exact).norm() / exact.norm().clamp(min=1e-300)).item()


def check(operation: str, arguments: list[Any], tile: Tile | None = None, floor: float = 0.0) -> None:
    """Runs the kernel of `operation` and asserts that it errs at most ALLOWANCE times as much as functional.py, or by
    FLOOR or `floor`."""
    plan = dispatch.PLANS[operation](*arguments)
    assert plan.unsupported is None, plan.unsupported
    oracle = getattr(CF, operation)
    exact = outputs(oracle(*(finest(a) if isinstance(a, Tensor) else a for a in arguments)))
    with tf32_as_asked(torch.float32):  # cuDNN would use it, and its error would hide ours
        eager = outputs(oracle(*arguments))
    with poisoned_memory():
        ours = outputs(plan.launch(tile or plan.tiles[0]))
    assert len(ours) == len(eager)
    for index, (value, same, true) in enumerate(zip(ours, eager, exact, strict=True)):
        assert value.shape == same.shape
        assert value.dtype == same.dtype
        assert value.is_contiguous()
        bound = ALLOWANCE * error(same, true) + max(FLOOR[same.dtype], floor)
        assert error(value, true) <= bound, f"output {index}: {error(value, true):.2e} > {bound:.2e}; {tile}"


def finest(tensor: Tensor) -> Tensor:
    """In float64; numbers in 8 bits as they are."""
    return tensor if tensor.dtype in STORED else tensor.double()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, or the largest integers, inside, so that an element that is not written shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        values = empty(*args, **kwargs)
        return values.fill_(torch.nan if values.is_floating_point() else torch.iinfo(values.dtype).max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


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


def launches(operation: str, arguments: list[Any]) -> list[_launch.Launch]:
    """What the operation would launch, on tensors without data."""
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    plan = dispatch.PLANS[operation](*meta)
    with _launch.recording() as recorded:
        plan.launch(plan.tiles[0])
    return recorded
