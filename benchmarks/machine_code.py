"""What a kernel's machine code does: of each loop and of what stands outside of them, what one warp runs. And whether
it waits first for the kernel before it.

How often a loop runs is no part of it: that follows from the launch's arguments.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton

from conformer_fast.kernels.launch import Launch
from conformer_fast.kernels.tiles import ceil_div

LANES = 32  # threads of a warp
SHAPED = re.compile(r"[HIQ]GMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)\S* R\d+, (gdesc)?")  # Hopper's, of four warps together
SUMMED = 32  # bytes of a row that one of them sums
PACKED = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "16832": 16 * 8 * 32}  # multiply-adds of a warp's, by name
SYNCHRONOUS = re.compile(r"[HIQ]MMA\.(\d+)")
LOAD = re.compile(r"LDG(STS)?\.\S*")
BITS = re.compile(r"\.[US]?(8|16|64|128)\b")

_STEPS: dict[str, Callable[[Mapping[str, Any]], tuple[int, ...]]] = {
    "linear_kernel": lambda a: (ceil_div(a["K"], a["BLOCK_K"]),),
    "conv1x1_pair_kernel": lambda a: (ceil_div(a["N"], a["BLOCK_N"]),),
    "conv3x3_kernel": lambda a: (9 * ceil_div(a["K"], a["BLOCK_K"]),),
    "whole_rows_kernel": lambda a: (ceil_div(a["K"], a["BLOCK_K"]),),
    "stem_kernel": lambda a: (2 * a["rows"] + 1,),
    "one_pass_kernel": lambda a: (a["QUERY_BLOCKS"],),
    "streaming_kernel": lambda a: (ceil_div(a["T"], a["BLOCK_KEYS"]),),
    "heads_kernel": lambda a: (
        ceil_div(a["pixels"], a["BLOCK_P"]) * ceil_div(a["K"], a["BLOCK_K"]),
        ceil_div(a["C"], 256),
        ceil_div(a["C"], a["BLOCK_K"]),
    ),
}


class Part(NamedTuple):
    """A loop's body without the loops inside, or what stands outside of all loops. All of one warp.

    flops:        of its matrix instructions
    operands:     bytes that Hopper's read from shared memory: the right operand and, if it is no register, the left
    loaded:       bytes from global memory, by all lanes
    asynchronous: of those bytes, what arrives beside the program (cp.async)
    awaited:      waits until all of Hopper's products are done
    barriers:     waits for the block's other warps
    """

    instructions: int
    flops: int
    operands: int
    loaded: int
    asynchronous: int
    awaited: int
    barriers: int


@dataclass(frozen=True)
class MachineCode:
    outside: Part
    loops: tuple[Part, ...]


def read(cubin: bytes) -> MachineCode:
    """Of a compiled kernel, disassembled by the toolkit's nvdisasm, which comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "--print-code", file.name]
        return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse(assembly: str) -> MachineCode:
    """Of what nvdisasm prints: a line a label ".L_x_1:" or an instruction behind its address."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if found := re.match(r"(\.L_\w+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s*(.*)", line):
            instructions.append(found[1])
    last = max(index for index, text in enumerate(instructions) if re.search(r"\bEXIT\b", text))
    instructions = instructions[: last + 1]  # behind it are rare cases of divisions and roots
    spans = []
    for index, text in enumerate(instructions):
        if (found := re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text)) and labels[found[1]] <= index:
            spans.append((labels[found[1]], index))
    loop_of = [
        min((span for span in spans if span[0] <= index <= span[1]), key=lambda span: span[1] - span[0], default=None)
        for index in range(len(instructions))
    ]
    parts = {
        span: _part([text for text, loop in zip(instructions, loop_of, strict=True) if loop == span])
        for span in (None, *sorted(spans))
    }
    return MachineCode(parts.pop(None), tuple(parts.values()))


def _part(instructions: list[str]) -> Part:
    loads = [found for text in instructions if (found := LOAD.search(text))]
    return Part(
        len(instructions),
        sum(map(_flops, instructions)),
        sum(map(_operands, instructions)),
        sum(_bytes(load[0]) for load in loads),
        sum(_bytes(load[0]) for load in loads if load[1]),
        sum("WARPGROUP.DEPBAR.LE gsb0, 0x0" in text for text in instructions),
        sum("BAR.SYNC" in text for text in instructions),
    )


def _flops(instruction: str) -> int:
    if found := SHAPED.search(instruction):
        m, n, k = map(int, found.groups()[:3])
        return 2 * m * n * k // 4
    if "GMMA" in instruction:
        raise ValueError(f"the operands of {instruction!r} are unknown")
    if found := SYNCHRONOUS.search(instruction):
        return 2 * PACKED[found[1]]
    return 0


def _operands(instruction: str) -> int:
    found = SHAPED.search(instruction)
    return SUMMED * (int(found[2]) + int(found[1]) * bool(found[4])) // 4 if found else 0


def _bytes(load: str) -> int:
    found = BITS.search(load)
    return LANES * (int(found[1]) // 8 if found else 4)


TOUCHES_OR_LEAVES = re.compile(  # in PTX; the block's own memory is no matter, nor is what is only prefetched
    r"\b(?:(?:ld|st|atom|red)\.(?!param\b|shared(?!::))|ldu\.|cp\.|tex\.|multimem|ret;|exit;|call\b|brx)"
)


def touches_memory_early(ptx: str) -> bool:
    """Whether a kernel may touch memory before it waits for the one before it (dependent.py), or never waits."""
    before, waits, _ = ptx.partition("griddepcontrol.wait")
    if not waits or TOUCHES_OR_LEAVES.search(before) or re.search(r"@\S+\s*$", before):  # or only some wait
        return True
    return any(f"{label}:" not in before for label in re.findall(r"\bbra(?:\.uni)?\s+(\S+);", before))  # around it


def fetches_early(ptx: str) -> bool:
    """Whether a kernel has something fetched into the L2 cache before it waits for the one before it."""
    return "prefetch.global.L2" in ptx.partition("griddepcontrol.wait")[0]


def iterations(launch: Launch) -> tuple[int, ...]:
    """Of each loop of its kernel in order, or one number for all; none for kernels whose loops are not counted."""
    steps = _STEPS.get(launch.kernel.fn.__name__)
    return steps(launch.arguments) if steps else ()
