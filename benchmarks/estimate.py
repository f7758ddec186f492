"""The time that a network would take on an H100, computed from what the compiler made of each launch. No measurement.

A block runs what stands outside of its loops once and each loop's body as often as its launch says (machine_code.py).
What is assumed, beside the ceilings that docs/performance-gpu.md names:

- A multiprocessor issues an instruction of 4 warps a cycle, of one warp every second cycle.
- A load arrives after 700 cycles. A loop with asynchronous loads has them on their way for all but one of its stages;
  any other waits for them in each iteration.
- A step takes as long as the longest of its instructions, its products and what it loads from the L2 cache. One that
  waits for its own products takes its instructions and its products in turn, and 160 cycles of barriers.
- What stands outside of loops waits for one load and overlaps with nothing of its own block.
- Products take as long as the longer of their arithmetic and of what they read from shared memory, 128 bytes a cycle.
- A multiprocessor loads 64 bytes a cycle, all of them together what the L2 cache gives.
- Blocks on the same multiprocessor share what it issues, multiplies and loads. All multiprocessors get the same number.

An operation takes no less than its floor (roofline.py), and each of its launches the gap that programmatic dependent
launch leaves between two kernels (dependent.py) more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import triton

from benchmarks.gpu import roofline, steps
from benchmarks.machine_code import Part
from benchmarks.recorded import DETECTOR, IMAGE
from conformer_fast.kernels.chips import CHIPS
from conformer_fast.kernels.tiles import ceil_div
from conformer_fast.tables import Column, Table

if TYPE_CHECKING:
    from benchmarks.kernels_report import Row

CLOCK = 1.755e9  # cycles a second
ISSUED = 4  # instructions a cycle of a multiprocessor
LOADED = 64  # bytes a cycle of a multiprocessor
SHARED = 128  # bytes a cycle of its shared memory
ARRIVES = 700  # cycles
AWAITED = 160  # cycles of a step whose products are waited for, beside them and its instructions
REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor
PRECISIONS = ("fp16", "int8", "fp8")
CHIP = CHIPS[90]  # whose machine code is read
CEILINGS = roofline.Ceilings(**steps.ASSUMED)
HEADINGS = {  # of an operation, and how its values are written
    "operation": "",
    "tile": "",
    "calls": "d",
    "blocks": "d",
    "at a time": "d",
    "waves": ".2f",
    "registers": "d",
    "instructions a step": "d",
    "loaded beside": ".0%",
    "waits a step": "d",
    "floor, us": ".1f",
    "estimate, us": ".1f",
    "lost, ms": ".3f",
}
LINES = Table(*starmap(Column, HEADINGS.items()))
GROWTH = 0.03  # of an estimate, that is no fault
OPERATIONS = 8  # that lose most, kept of each network


@dataclass(frozen=True)
class Estimate:
    """Of an operation that the network calls `calls` times, in seconds a call. rows: its launches."""

    rows: tuple[Row, ...]
    calls: int
    floor: float
    seconds: float

    @property
    def lost(self) -> float:
        return self.calls * (self.seconds - self.floor)

    @property
    def cells(self) -> tuple[Any, ...]:
        """Of a line of LINES: of the longest launch, and of the loop of it that multiplies."""
        row = max(self.rows, key=busy)
        step = step_of(row)
        return (
            row.problem,
            "x".join(map(str, row.tile[:3])) + f" w{row.tile[3]} s{row.tile[4]}",
            self.calls,
            row.blocks,
            occupancy(row),
            row.blocks / (CHIP.sms * occupancy(row)),
            row.registers,
            step.instructions,
            step.asynchronous / step.loaded if step.loaded else None,
            step.awaited,
            self.floor * 1e6,
            self.seconds * 1e6,
            self.lost * 1e3,
        )


def step_of(row: Row) -> Part:
    """The loop that multiplies most; what stands outside of loops if none does."""
    assert row.code
    return max((row.code.outside, *row.code.loops), key=lambda part: part.flops)


def occupancy(row: Row) -> int:
    """Blocks that a multiprocessor holds at a time."""
    warps = row.tile[3]
    registers = ceil_div(row.registers * 32, 256) * 256 * warps  # they are given out in pieces
    return min(REGISTERS // registers, (CHIP.shared + 1024) // (row.shared + 1024), WARPS // warps, BLOCKS)


class Work(NamedTuple):
    """Of a block, in cycles of its multiprocessor: to issue, to multiply and to load."""

    issuing: float
    multiplying: float
    loading: float


def work_of(part: Part, warps: int, precision: str) -> Work:
    flops = CEILINGS.flops_per_second[precision] / (CHIP.sms * CLOCK)
    multiplying = max(part.flops / flops, part.operands / SHARED) * warps
    return Work(part.instructions * warps / ISSUED, multiplying, part.loaded * warps / LOADED)


def busy(row: Row) -> float:
    """Seconds that the launch keeps its multiprocessors, without the gap before it."""
    assert row.code
    warps, stages, precision = row.tile[3], row.tile[4], precision_of(row.problem)
    loops = row.code.loops
    times = row.iterations * len(loops) if len(row.iterations) == 1 else row.iterations
    outside = row.code.outside._replace(loaded=row.code.outside.loaded - row.code.outside.asynchronous)
    works = [(work_of(outside, warps, precision), 1)]
    alone = ARRIVES + max(works[0][0].issuing, 2 * outside.instructions) + works[0][0].multiplying
    for part, count in zip(loops, times, strict=True):
        work = work_of(part, warps, precision)
        issuing = max(work.issuing, 2 * part.instructions)
        if part.awaited:
            step = max(issuing + work.multiplying + AWAITED, work.loading)
        else:
            step = max(issuing, work.multiplying, work.loading)
        if part.asynchronous:
            step = max(step, ARRIVES / max(1, stages - 1))
        elif part.loaded:
            step += ARRIVES
        alone += count * step
        works.append((work, count))
    issuing, multiplying, loading = (sum(count * work[kind] for work, count in works) for kind in range(3))
    rounds, blocks = ceil_div(row.blocks, CHIP.sms * occupancy(row)), ceil_div(row.blocks, CHIP.sms)
    from_cache = row.blocks * loading * LOADED / CEILINGS.l2_bytes_per_second
    return max(max(rounds * alone, blocks * max(issuing, multiplying, loading)) / CLOCK, from_cache)


def precision_of(problem: str) -> str:
    """Of the products of a problem: "linear int8-fp16 ..." is "int8"."""
    return problem.split()[1].partition("-")[0]


@dataclass(frozen=True)
class Network:
    """Of 224x224 images. estimates: of its operations, the largest loss first."""

    variant: str
    batch: int
    precision: str
    estimates: tuple[Estimate, ...]

    @property
    def seconds(self) -> float:
        return sum(estimate.calls * estimate.seconds for estimate in self.estimates)

    @property
    def floor(self) -> float:
        return sum(estimate.calls * estimate.floor for estimate in self.estimates)

    @property
    def kernels(self) -> int:
        return sum(estimate.calls * len(estimate.rows) for estimate in self.estimates)

    def __str__(self) -> str:
        head = f"{self.variant}, batch {self.batch}, {self.precision}: {self.kernels} kernels, "
        head += f"estimate {self.seconds * 1e3:.3f} ms, floor {self.floor * 1e3:.3f} ms"
        return "\n".join([head, *LINES.lines(estimate.cells for estimate in self.estimates)])


def networks(rows: Sequence[Row]) -> list[Network]:
    """Of all variants, batches and precisions whose launches are all among the rows.

    Raises ValueError for a kernel of which machine_code.py does not say how often its loops run.
    """
    launches: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.chip == CHIP.capability and row.size == IMAGE:
            launches.setdefault((row.variant, row.problem), []).append(row)
    rows = [row for row in rows if row.variant != DETECTOR]  # which has no floor here
    points, variants = {(row.variant, row.batch) for row in rows}, list(dict.fromkeys(row.variant for row in rows))
    in_order = sorted(points, key=lambda point: (variants.index(point[0]), point[1]))
    found = []
    for (variant, batch), precision in product(in_order, PRECISIONS):
        operations = roofline.network(variant, batch, precision)
        if all((variant, operation.problem) in launches for operation in operations):
            estimates = (_estimate(operation, launches[variant, operation.problem]) for operation in operations)
            by_loss = sorted(estimates, key=lambda estimate: -estimate.lost)
            found.append(Network(variant, batch, precision, tuple(by_loss)))
    return found


def _estimate(operation: roofline.Operation, launches: Sequence[Row]) -> Estimate:
    floor = operation.floor(CEILINGS)
    seconds = max(floor, sum(map(busy, launches))) + len(launches) * CEILINGS.least_gap
    return Estimate(tuple(launches), operation.count, floor, seconds)


def as_json(found: Iterable[Network]) -> dict[str, Any]:
    """What is stored of them: the sums, and the operations that lose most."""
    return {
        "triton": triton.__version__,
        "headings": HEADINGS,
        "networks": [
            {
                "variant": network.variant,
                "batch": network.batch,
                "precision": network.precision,
                "kernels": network.kernels,
                "seconds": network.seconds,
                "floor": network.floor,
                "operations": [estimate.cells for estimate in network.estimates[:OPERATIONS]],
            }
            for network in found
        ],
    }


def grown(found: Iterable[Network], stored: dict[str, Any]) -> list[str]:
    """A line for each network whose estimate is above the stored one by more than GROWTH, or that is not stored; one if
    there is none to compare, or they were stored by another Triton."""
    found = list(found)
    if not found:
        return ["there is no estimate to compare: the launches of no network are complete"]
    if stored["triton"] != triton.__version__:
        return [
            f"the stored estimates are of Triton {stored['triton']}, these of {triton.__version__}; store them anew"
        ]
    before = {(row["variant"], row["batch"], row["precision"]): row["seconds"] for row in stored["networks"]}
    lines = []
    for network in found:
        name = f"{network.variant}, batch {network.batch}, {network.precision}"
        least = before.get((network.variant, network.batch, network.precision))
        if least is None:
            lines.append(f"{name}: no estimate is stored")
        elif network.seconds > (1 + GROWTH) * least:
            lines.append(f"{name}: the estimate grew from {least * 1e3:.3f} ms to {network.seconds * 1e3:.3f} ms")
    return lines
