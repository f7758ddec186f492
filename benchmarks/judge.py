"""How a kernel is judged: against its oracle in float64, by the error that PyTorch itself makes in that precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from conformer_fast.kernels.launch import Plan
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import distance
from conformer_fast.model import functional as CF
from conformer_fast.model.distance import ALLOWANCE, relative_error
from conformer_fast.model.precision import DTYPES, tf32_as_asked

STORED = (torch.int8, torch.float8_e4m3fn)
FLOOR = {dtype: distance.FLOOR[precision] for precision, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Verdict:
    """Of one output: the kernel's relative error and the most that is allowed."""

    error: float
    bound: float

    @property
    def within(self) -> bool:
        """False for NaN too."""
        return self.error <= self.bound


def judge(operation: str, plan: Plan, arguments: list[Any], tile: Tile, floor: float = 0.0) -> list[Verdict]:
    """Runs the plan with this tile, its outputs in poisoned memory: each may err ALLOWANCE times as much as
    functional.py in the same precision, or by FLOOR or `floor`. Of results in 8 bits two numbers beside a tie may be
    its other side's.

    Raises AssertionError if an output has another shape, dtype or memory order than it should.
    """
    oracle = getattr(CF, operation)
    exact = outputs(oracle(*(finest(a) if isinstance(a, Tensor) else a for a in arguments)))
    with tf32_as_asked(torch.float32):  # cuDNN would use it, and its error would hide ours
        eager = outputs(oracle(*arguments))
    with poisoned_memory():
        ours = outputs(plan.launch(tile))
    assert len(ours) == len(eager)
    verdicts = []
    for value, same, true in zip(ours, eager, exact, strict=True):
        assert (value.shape, value.dtype, value.device) == (same.shape, same.dtype, same.device)
        assert value.is_contiguous()
        least = _two_ties(true) if same.dtype in STORED else FLOOR[same.dtype]
        bound = ALLOWANCE * relative_error(same, true) + max(least, floor)
        verdicts.append(Verdict(relative_error(value, true), bound))
    return verdicts


def _two_ties(numbers: Tensor) -> float:
    """The relative error of two numbers in 8 bits that are one step off: FP8's are an eighth of a number at most."""
    true = numbers.double()
    step = 1.0 if numbers.dtype == torch.int8 else true.abs().max().item() / 8
    return 2**0.5 * step / true.norm().item() if true.any() else 0.0


def outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


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

    with mock.patch.object(torch, "empty", poisoned):
        yield
