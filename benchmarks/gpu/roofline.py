"""What each operation of the network must do at least, and the time that takes a machine.

The floor of an operation is the longer of two times: reading every input once and writing every output once, and its
floating-point operations at the rate of the best matrix product of its precision, all as measured on the machine
(facts.py). Weights come from memory; so do activations, unless the operation's fit half the L2 cache.

The network's floor is the sum over its operations. Two others say what could be had in its place: the launch floor, in
which no operation is shorter than the gap between two kernels of a CUDA graph, and the fused floor, in which each 3x3
convolution of the first two stages is one kernel with the two or three 1x1 convolutions that follow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.recorded import IMAGE, recorded_calls
from conformer_fast.inference import work
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.launch import STORED
from conformer_fast.model.config import ConformerConfig, get_config
from conformer_fast.model.precision import DTYPES

PAIR = "conv1x1_pair"
LEAST_FUSED = IMAGE // 8  # rows of a map of the second stage


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches; facts.py measures it.

    bytes_per_second:    read and written together by a copy in memory
    l2_bytes:            what fits the L2 cache beside other things: half of it
    l2_bytes_per_second: the same rate within the L2 cache
    flops_per_second:    of matrix products, by precision: "fp16", "int8" and, where there is such a product, "fp8"
    gap:                 seconds that a kernel which does nothing takes in a CUDA graph
    dependent_gap:       the same with programmatic dependent launch, None where there is none
    """

    bytes_per_second: float
    l2_bytes: float
    l2_bytes_per_second: float
    flops_per_second: Mapping[str, float]
    gap: float
    dependent_gap: float | None

    @property
    def least_gap(self) -> float:
        """Between two of our kernels, which are launched dependently where that is possible."""
        return self.gap if self.dependent_gap is None else self.dependent_gap

    def seconds(self, weights: float, activations: float) -> float:
        """To move so many bytes."""
        rate = self.l2_bytes_per_second if activations <= self.l2_bytes else self.bytes_per_second
        return weights / self.bytes_per_second + activations / rate


@dataclass(frozen=True)
class Operation:
    """A call that the network makes `count` times. arguments: by name and in order, tensors without data.

    precision, weights, activations, flops: as of its `work.Work`
    """

    name: str
    problem: str
    arguments: dict[str, Any]
    count: int
    precision: str
    weights: int
    activations: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.weights + self.activations

    def floor(self, ceilings: Ceilings) -> float:
        return max(self._moving(ceilings), self._multiplying(ceilings))

    def bound(self, ceilings: Ceilings) -> str:
        if self.floor(ceilings) < ceilings.least_gap:
            return "launch"
        return "memory" if self._moving(ceilings) == self.floor(ceilings) else "products"

    def _moving(self, ceilings: Ceilings) -> float:
        return ceilings.seconds(self.weights, self.activations)

    def _multiplying(self, ceilings: Ceilings) -> float:
        return self.flops / ceilings.flops_per_second[self.precision]


def network(config: str | ConformerConfig, batch: int, precision: str = "fp16") -> list[Operation]:
    """The operations that the inference model runs for a batch of 224x224 images, each different one once.

    precision: "fp16" or "fp32"; "int8" and "fp8" are of all products that can be, within fp16
    """
    made = in_order(config, batch, precision)
    counts = Counter(operation.problem for operation in made)
    different = {operation.problem: operation for operation in made}
    return [replace(operation, count=counts[problem]) for problem, operation in different.items()]


@cache
def in_order(config: str | ConformerConfig, batch: int, precision: str) -> tuple[Operation, ...]:
    """The operations in the order in which they are called, one by one."""
    stored, rest = (None, precision) if precision in DTYPES else (precision, "fp16")
    made = recorded_calls(get_config(config), batch, rest, stored=stored)
    different: dict[str, Operation] = {}
    for call in made:
        if call.plan.problem not in different:
            different[call.plan.problem] = _operation(call, rest)
    return tuple(different[call.plan.problem] for call in made)


def _operation(call: dispatch.Call, rest: str) -> Operation:
    arguments = work.arguments_of(call.operation, call.pytorch.args, call.pytorch.keywords)
    must = work.of_call(call.operation, arguments, rest)
    return Operation(call.operation, call.plan.problem, arguments, 1, **vars(must))


@dataclass(frozen=True)
class Floors:
    """Of a network, in seconds. dependent_launch: the launch floor by the smaller gap, None where there is none."""

    floor: float
    launch: float
    dependent_launch: float | None
    fused: float


def floors(config: str | ConformerConfig, batch: int, precision: str, ceilings: Ceilings) -> Floors:
    """The network's floor and those that could be had in its place."""
    made = in_order(config, batch, precision)
    times = [operation.floor(ceilings) for operation in made]
    gaps = (ceilings.gap, ceilings.dependent_gap)
    launch, dependent = (None if gap is None else sum(max(time, gap) for time in times) for gap in gaps)
    assert launch is not None
    return Floors(sum(times), launch, dependent, _fused(made, ceilings))


def _fused(made: Sequence[Operation], ceilings: Ceilings) -> float:
    """The sum of floors if a 3x3 convolution of the first two stages, the 1x1 that projects the residual where there is
    one, the 1x1 that adds it and the next bottleneck's first 1x1 are one kernel. The map between the first two is then
    neither written nor read, nor is the projected residual; and what the last one reads is only written, as that of a
    pair is in any case. A first 1x1 that adds FCU-up's map is left out, and so is all of such a pair: the transformer
    block stands between."""
    alone = dict(enumerate(made))
    total = 0.0
    for index, first in enumerate(made):
        if not first.name.startswith("conv3x3") or _out_height(first) < LEAST_FUSED:
            continue
        following = [other for other in range(index + 1, len(made)) if made[other].name.startswith("conv1x1")]
        last = next(place for place, other in enumerate(following) if _reduces(made[other]))
        group = [index, *following[: last + 1]]
        paired, added = made[group[-1]].name == PAIR, made[group[-1]].arguments["token_map"] is not None
        if paired and added:
            continue
        *before, expand = (made[member].arguments for member in (group[1:] if paired else group[1:-1]))
        spared = 2 * work.size(expand["feature_map"]) + 2 * work.size(expand["residual"]) * len(before)
        if added:
            group.pop()
        elif not paired:
            spared += work.size(made[group[-1]].arguments["feature_map"])
        taken = [alone.pop(member) for member in group]
        activations = sum(operation.activations for operation in taken) - spared
        moving = ceilings.seconds(sum(operation.weights for operation in taken), activations)
        multiplying = sum(operation.flops / ceilings.flops_per_second[operation.precision] for operation in taken)
        total += max(moving, multiplying)
    return total + sum(operation.floor(ceilings) for operation in alone.values())


def _out_height(convolution: Operation) -> int:
    return -(-convolution.arguments["feature_map"].shape[1] // convolution.arguments["stride"])


def _reduces(convolution: Operation) -> bool:
    """Whether it is the first 1x1 of a bottleneck, or has it in it."""
    arguments = convolution.arguments
    return convolution.name == PAIR or (arguments["relu"] and arguments["residual"] is None)


def filled(arguments: Mapping[str, Any], device: str, seed: int) -> list[Any]:
    """The same arguments, in order, with random values. Weights are scaled, and what 8 bits stand for, so that
    results are near 1."""
    generator = torch.Generator(device).manual_seed(seed)

    def values(name: str, tensor: Tensor) -> Tensor:
        full = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        if name.endswith("scale"):
            return full.fill_(2**-10 if name == "weight_scale" else 2**-5)
        normal = torch.empty_strided(tensor.shape, tensor.stride(), device=device).normal_(generator=generator)
        if tensor.dtype in STORED:
            normal *= 32
        elif name.endswith("weight") and tensor.ndim > 1:
            normal *= tensor[0].numel() ** -0.5
        return full.copy_(normal)

    return [values(name, a) if isinstance(a, Tensor) else a for name, a in arguments.items()]
