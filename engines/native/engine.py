"""The engine for 8 bits on the CPU: a network's graph, run by csrc/int8*.

A batch is spread over the threads, up to IMAGES_AT_ONCE images each, which share what reading a weight costs. Fewer
images than threads are run by all threads together. All sums are exact, so that a result depends neither on an image's
neighbors nor on the threads. For a size nothing is built but tables.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from conformer_fast import _C

from .graph import Graph
from .memory import Buffer
from .program import Program
from .weights import Packed, all_packed

IMAGES_AT_ONCE, MANY_PIXELS = 4, 500_000  # of so many pixels, an image alone fills the caches
PLANS_KEPT = 12  # of image sizes, and of how many images at once


class Input(NamedTuple):
    """What one run of a program takes."""

    images: int
    height: int
    width: int


class NativeEngine:
    """images (B, in_channels, H, W), fp32 on the CPU -> one fp32 tensor (B, ...) per output. Callable from any thread.

    graph:        returns the network; asked at the first run
    threads:      cores to use; default: as many as PyTorch uses
    instructions: one of _C.int8_instruction_sets(); default: the fastest
    """

    def __init__(self, graph: Callable[[], Graph], threads: int | None = None, instructions: str = "") -> None:
        self._read: Callable[[], Graph] | None = graph
        self._ready: tuple[Graph, dict[tuple[int, str], Packed]] | None = None
        self._instructions = instructions
        self._threads = threads or torch.get_num_threads()
        self._plans: OrderedDict[Input, _Plan] = OrderedDict()
        self.start_anew()
        _engines.add(self)

    def start_anew(self) -> None:
        """With no lock taken."""
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(torch.float32).resolve_neg().contiguous()
        B, _, H, W = images.shape
        outputs: list[Tensor] = []
        done = 0
        while done < B:
            streams, at_once, count = _round(B - done, self._threads, IMAGES_AT_ONCE if H * W < MANY_PIXELS else 1)
            plan = self._plan(Input(at_once, H, W))
            outputs = outputs or [_empty(B, *result.shape) for result in plan.program.results]
            self._run(plan, images[done : done + count], [output[done : done + count] for output in outputs], streams)
            done += count
        return tuple(
            output.permute(0, 3, 1, 2).contiguous() if result.permuted else output
            for output, result in zip(outputs, plan.program.results, strict=True)
        )

    def _run(self, plan: _Plan, images: Tensor, outputs: list[Tensor], streams: int) -> None:
        with self._lock:
            taken = [plan.free.pop() for _ in range(min(streams, len(plan.free)))]
        taken += [self._made(plan.program) for _ in range(streams - len(taken))]
        _C.int8_run(taken, images.numpy(), [output.numpy() for output in outputs], self._threads)
        with self._lock:
            plan.free.extend(taken[: max(0, 2 * self._threads - len(plan.free))])

    def _plan(self, shape: Input) -> _Plan:
        with self._lock:
            plan = self._plans.get(shape)
            if plan is None:
                plan = self._plans[shape] = _Plan(Program(*self._network(), *shape), [])
            self._plans.move_to_end(shape)
            while len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
            return plan

    def _made(self, program: Program) -> _C.Int8Program:
        made = _C.Int8Program(self._instructions, program.bytes, program.images)
        for name, fields in program.steps:
            given = {name: field.offset if isinstance(field, Buffer) else field for name, field in fields.items()}
            getattr(made, name)(**given)
        return made

    def _network(self) -> tuple[Graph, dict[tuple[int, str], Packed]]:
        """The graph without its weights in 8 bits, and these as csrc/ reads them. For who has the lock."""
        if self._ready is None:
            assert self._read is not None
            graph = self._read()
            small = {name: tensor for name, tensor in graph.tensors.items() if tensor.dtype != torch.int8}
            self._ready = replace(graph, tensors=small), all_packed(graph)
            self._read = None  # it may hold what is not needed any more
        return self._ready


class _Plan(NamedTuple):
    """A program, and those made of it that nobody runs."""

    program: Program
    free: list[_C.Int8Program]


def _round(images: int, threads: int, most: int) -> tuple[int, int, int]:
    """Of so many: how many programs run the next ones, how many images each at once, `most` at most, and how many in
    all."""
    streams = threads if images >= threads else 1
    at_once = min(most, 1 << ((images // streams).bit_length() - 1))
    return streams, at_once, images // (streams * at_once) * streams * at_once


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


_engines: weakref.WeakSet[NativeEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child: a lock may have been another thread's."""
    for engine in _engines:
        engine.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
