"""What a machine reaches at most in products and in memory, measured; and what a network takes that does nothing else.

Neither is out of a data sheet: it is the best that this machine gave just now, on the cores that a model has too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Barrier, local

import numpy as np
import torch

from conformer_fast.inference.work import Work
from conformer_fast.model.precision import DTYPES

from .timing import seconds_of

ROUNDS = 5
BLOCKS = tuple(1 << power for power in (20, 22, 24, 26, 28))  # bytes: from what a cache holds to what none does
MOVED = 16 << 20  # bytes at least that a thread moves at a time, or starting it would count
GPU_BLOCK = 256 << 20  # bytes that memory is timed by: beyond any GPU's cache
SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices whose product PyTorch is timed by


@dataclass(frozen=True)
class Ceiling:
    """products: operations a second by precision, a multiplication and an addition being two; memory: bytes read or
    written a second, by the bytes of the block that they are in, or of a GPU's cache, which holds no larger block;
    around: the precision of what is not in 8 bits."""

    products: Mapping[str, float]
    memory: Mapping[int, float]
    around: str

    def multiplying(self, network: Sequence[Work]) -> float:
        """Seconds of the products alone."""
        return sum(one.flops / self.products[one.precision] for one in network)

    def moving(self, network: Sequence[Work]) -> float:
        """Seconds of reading all weights once, and what lies between the operations once, and of writing that."""
        weights = self._moving(sum(one.weights for one in network))
        return weights + sum(self._moving(one.activations) for one in network)

    def _moving(self, count: int) -> float:
        """A block of so many bytes, at the rate of the largest size in `memory` that is no larger; what is smaller
        than all of them is taken to cost nothing."""
        measured = [size for size in self.memory if size <= count]
        return count / self.memory[max(measured)] if measured else 0.0


@cache
def cpu_memory(threads: int) -> dict[int, float]:
    """`Ceiling.memory` of so many threads, each with its part of the block: the better of reading it, and of copying
    one half to the other. Each makes its part, as memory is where the core is that touched it first."""
    own, together = local(), Barrier(threads)
    with ThreadPoolExecutor(threads) as pool:

        def by_each(call: Callable[[], None]) -> None:
            """Each thread calls it once."""

            def once(_: int) -> None:
                together.wait()
                call()

            list(pool.map(once, range(threads)))

        def make(size: int) -> None:
            own.part = np.ones(size // 4 // threads, np.float32)

        def rate(size: int, move: Callable[[np.ndarray], object]) -> float:
            repeats = -(-MOVED * threads // size)

            def work() -> None:
                for _ in range(repeats):
                    move(own.part)

            by_each(lambda: make(size))
            seconds = min(seconds_of(lambda _: by_each(work), torch.empty(0)) for _ in range(1 + ROUNDS))
            return repeats * size / seconds

        return {size: max(rate(size, np.max), rate(size, _copy_half)) for size in BLOCKS}


def _copy_half(part: np.ndarray) -> None:
    half = len(part) // 2
    np.copyto(part[:half], part[half : 2 * half])


def by_pytorch(precision: str, device: str) -> Ceiling | None:
    """Of PyTorch's square product in this precision on this device; None for products in 8 bits, of which it has
    none for everybody. Measured once a process, on a CPU for each number of PyTorch's threads."""
    return _by_pytorch(precision, device, torch.get_num_threads()) if precision in DTYPES else None


@cache
def _by_pytorch(precision: str, device: str, threads: int) -> Ceiling:
    kind = torch.device(device).type
    one, other = (torch.randn(SIDE[kind], SIDE[kind], device=device).to(DTYPES[precision]) for _ in range(2))
    products = {precision: 2 * SIDE[kind] ** 3 / _least(lambda matrix: matrix @ other, one)}
    if kind == "cpu":
        return Ceiling(products, cpu_memory(threads), precision)
    block = torch.zeros(2, GPU_BLOCK // 2, dtype=torch.uint8, device=device)
    rate = GPU_BLOCK / _least(lambda both: both[0].copy_(both[1]), block)
    return Ceiling(products, {torch.cuda.get_device_properties(device).L2_cache_size: rate}, precision)


def _least(call: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> float:
    return min(seconds_of(call, tensor) for _ in range(1 + ROUNDS))
