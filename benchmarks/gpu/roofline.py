"""What each operation of the network must do at least, and the time that takes a machine.

The floor of an operation is max(bytes / copy bandwidth, floating-point operations / matrix rate): every input read once
and every output written once, products at the rate of a large matrix product, both as measured on the machine. The
network's floor is the sum over its operations. An input that is still in the L2 cache may beat it, small batches do.
The launch floor replaces, in that sum, operations shorter than the gap between two kernels of a CUDA graph by that gap.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.recorded import recorded_calls
from conformer_fast import functional as CF
from conformer_fast.config import ConformerConfig, get_config
from conformer_fast.kernels import dispatch


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches. gap: seconds that a kernel which does nothing takes in a CUDA graph."""

    bytes_per_second: float
    flops_per_second: float
    gap: float


@dataclass(frozen=True)
class Operation:
    """A call that the network makes `count` times. arguments: by name and in order, tensors without data."""

    name: str
    problem: str
    arguments: dict[str, Any]
    count: int
    bytes: int
    flops: int

    def floor(self, ceilings: Ceilings) -> float:
        return max(self.bytes / ceilings.bytes_per_second, self.flops / ceilings.flops_per_second)

    def bound(self, ceilings: Ceilings) -> str:
        if self.floor(ceilings) < ceilings.gap:
            return "launch"
        return "memory" if self.bytes / ceilings.bytes_per_second == self.floor(ceilings) else "products"


@cache
def network(config: str | ConformerConfig, batch: int, dtype: torch.dtype = torch.float16) -> list[Operation]:
    """The operations that the inference model runs for a batch of 224x224 images, each different one once."""
    made = recorded_calls(get_config(config), batch, dtype)
    counts = Counter(call.plan.problem for call in made)
    different = {call.plan.problem: call for call in made}
    return [_operation(call, counts[problem]) for problem, call in different.items()]


def _operation(call: dispatch.Call, count: int) -> Operation:
    bound = inspect.signature(getattr(CF, call.operation)).bind(*call.pytorch.args, **call.pytorch.keywords)
    bound.apply_defaults()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = call.pytorch()
    outputs = (out,) if isinstance(out, Tensor) else out
    moved = [*_read(call.operation, **bound.arguments), *outputs]
    size = sum(tensor.numel() * tensor.element_size() for tensor in moved)
    return Operation(call.operation, call.plan.problem, bound.arguments, count, size, counter.get_total_flops())


def _read(operation: str, **arguments: Any) -> list[Tensor]:
    """The parts of the arguments that the operation needs."""
    if operation == "conv1x1":
        stride = arguments["stride"]
        arguments["feature_map"] = arguments["feature_map"][:, ::stride, ::stride]
    elif operation in ("heads", "pool"):
        arguments["tokens"] = arguments["tokens"][:, 0]
    elif operation == "fcu_up":
        arguments["tokens"] = arguments["tokens"][:, 1:]
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def floors(operations: Sequence[Operation], ceilings: Ceilings) -> tuple[float, float]:
    """The network's floor and its launch floor, in seconds."""
    floor = sum(operation.count * operation.floor(ceilings) for operation in operations)
    launch = sum(operation.count * max(operation.floor(ceilings), ceilings.gap) for operation in operations)
    return floor, launch


def filled(arguments: Mapping[str, Any], device: str, seed: int) -> list[Any]:
    """The same arguments, in order, with random values. Weights are scaled so that results are near 1."""
    generator = torch.Generator(device).manual_seed(seed)

    def values(name: str, tensor: Tensor) -> Tensor:
        full = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        is_matrix = name.endswith("weight") and tensor.ndim > 1
        return full.normal_(generator=generator).mul_(tensor[0].numel() ** -0.5 if is_matrix else 1.0)

    return [values(name, a) if isinstance(a, Tensor) else a for name, a in arguments.items()]
