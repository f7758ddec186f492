"""What the compiler makes of every kernel, for every shape of the four variants and of Mask R-CNN on six chips, without
a GPU.

    python -m benchmarks.kernels_report [--chips 90] [--precision int8 fp8] [--batch 1 128] [--size 224] [--json FILE]
        [--estimates FILE] [--against FILE]

Each launch of the four inference models (tensors without data) is compiled ahead of time, by the Triton that Python
finds. Reported per kernel and shape: registers a thread, bytes spilled, shared memory, matrix instructions. The exit
status is 1 if a kernel spills, needs more shared memory than the chip has, multiplies matrices without matrix
instructions or one by one, may overwrite what they still read, or touches memory before the kernel before it is done.

For estimates of an H100 (estimate.py) their machine code is read. The status is then 1 as well if a product in 16 bits
waits in each step, or an estimate is above FILE's.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined: an interpreted one cannot be compiled

import torch
import triton
from torch import Tensor
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import estimate, machine_code
from benchmarks.machine_code import MachineCode
from benchmarks.recorded import DETECTOR, IMAGE, detector_calls, recorded_calls
from conformer_fast.engines.cuda import CAPABILITY_FP8
from conformer_fast.kernels import chips as chips_module
from conformer_fast.kernels import dispatch
from conformer_fast.kernels import launch as launch_module
from conformer_fast.kernels.preprocess import Pass, launch_preprocess
from conformer_fast.kernels.regions import read_regions
from conformer_fast.kernels.suppress import kept_of
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.detector.config import LONG_EDGE
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.precision import DTYPES, FORMATS, around
from conformer_fast.tables import Column, Table

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
TYPES |= {torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv"}
TYPES |= {torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"}
PRECISIONS = (*DTYPES, "tf32", *FORMATS)
MODELS = [*VARIANTS, DETECTOR]
STRIDES = (4, 8, 16, 32)  # of the maps that a detector's regions are read from
SIZES = (IMAGE, 384, 1344)  # pixels a side; 1344: COCO's longer side, in whole patches
EXACT = r"tt\.dot (?!.*inputPrecision = tf32).*: tensor<\w+xf32> \*"  # in Triton's own form: products of fp32
SERIALIZED = r"\(C751[45]\)"  # ptxas: "wgmma.mma_async instructions are serialized"
SPILLED = 8  # bytes that are no fault: one value parked across a loop, to fit one more block on a multiprocessor
SPILLED_EXACT = 20  # of products in exact fp32, which hold more: up to five values, parked across the loop too
WAITING = (  # in their nature: a softmax, a product of what another one made, rows in fp32, a pool of each line
    "attention",
    "conv1x1_pair",
    "fcu_up",
    "stem",
)
MATRIX = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"mma\.sync",
}  # in PTX; Hopper's, Blackwell's
ROWS = Table(
    Column("problem"),
    Column("tile"),
    Column("registers", "d"),
    Column("spilled", "d"),
    Column("shared", "d"),
    Column("matrix"),
    Column(),
)


@dataclass(frozen=True)
class Row:
    """One launch on one chip. triton: its version. size: of the images, pixels a side. spilled: bytes a thread. matrix:
    the matrix instruction that its products use, None if it has none; products: whether it multiplies matrices other
    than exactly in fp32, for which there is none. serialized: whether each of Hopper's matrix instructions waits for
    the one before it, because the assembler could not keep their registers apart. overtaken: whether a loop's next step
    may overwrite registers that they still read (`launch.must_wait`). early: whether it may touch memory before the
    kernel before it is done (dependent.py); late: whether one in a small grid does not fetch its weight before. blocks:
    of its grid. iterations: of each of its loops, or one number for all. code: if it was read."""

    triton: str
    chip: int
    variant: str
    batch: int
    size: int
    problem: str
    kernel: str
    tile: tuple[int, ...]
    registers: int
    spilled: int
    serialized: bool
    overtaken: bool
    early: bool
    late: bool
    shared: int
    matrix: str | None
    products: bool
    blocks: int
    iterations: tuple[int, ...]
    code: MachineCode | None

    @property
    def faults(self) -> list[str]:
        limit = chips_module.CHIPS[self.chip].shared
        found = []
        operation, precision = self.problem.split()[:2]
        if self.spilled > (SPILLED_EXACT if precision == "fp32" else SPILLED):
            found.append(f"spills {self.spilled} bytes a thread")
        if self.shared > limit:
            found.append(f"needs {self.shared} bytes of shared memory, there are {limit}")
        if self.serialized:
            found.append("its matrix instructions wait for each other")
        if self.overtaken:
            found.append("its matrix instructions may read registers that were overwritten")
        if self.early:
            found.append("touches memory before the kernel before it is done")
        if self.late:
            found.append("fetches no weight before the kernel before it is done")
        if self.waits and not (operation in WAITING or precision not in ("fp16", "bf16")):
            found.append("waits for each of its matrix instructions")
        if self.products and self.matrix is None:
            found.append("multiplies matrices without matrix instructions")
        return found

    @property
    def waits(self) -> bool:
        """Whether a loop waits for its own products in each step, so that nothing else goes on beside them."""
        return self.code is not None and any(part.flops and part.awaited for part in self.code.loops)

    @property
    def cells(self) -> tuple[object, ...]:
        """Of a line of ROWS."""
        tile = "x".join(map(str, self.tile[:3])) + f" w{self.tile[3]} s{self.tile[4]}"
        return self.problem, tile, self.registers, self.spilled, self.shared, self.matrix, "; ".join(self.faults)


@dataclass(frozen=True)
class Binary:
    """All that decides a kernel's machine code."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    chip: int
    warps: int
    stages: int


def binary_of(launch: launch_module.Launch, chip: int) -> Binary:
    """What Triton would compile for this launch: it specializes on dtypes, on 1 and on multiples of 16."""
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
            signature.append((parameter.name, "constexpr"))
            constants.append((parameter.name, value))
        elif isinstance(value, Tensor):
            signature.append((parameter.name, TYPES[value.dtype]))
            divisible.append(index)  # PyTorch's memory is aligned
        elif isinstance(value, float):
            signature.append((parameter.name, "fp32"))
        else:
            signature.append((parameter.name, "i32" if value < 2**31 else "i64"))
            if special and value % 16 == 0:
                divisible.append(index)
    function = launch.kernel.fn
    names = function.__module__, function.__name__
    tile = launch.tile
    return Binary(*names, tuple(signature), tuple(constants), tuple(divisible), chip, tile.warps, tile.stages)


def assembled(binary: Binary) -> Any:
    """What Triton makes of it, all stages of it in `asm`; the assembler's log goes to the standard output."""
    module = __import__(binary.module, fromlist=[binary.kernel])
    attributes = {(index,): [["tt.divisibility", 16]] for index in binary.divisible}
    kernel = getattr(module, binary.kernel)
    source = ASTSource(kernel, dict(binary.signature), dict(binary.constants), attributes)
    options = {"num_warps": binary.warps, "num_stages": binary.stages, **launch_module.OPTIONS}
    triton.knobs.compilation.always_compile = True  # the log is the assembler's, which does not run for a cached binary
    triton.knobs.nvidia.dump_ptxas_log = True
    return triton.compile(source, target=GPUTarget("cuda", binary.chip, 32), options=options)


def compiled(binary: Binary, disassembled: bool = False) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and matrix instruction of a binary, and what its machine code says."""
    with redirect_stdout(io.StringIO()) as log:
        result = assembled(binary)
    ptx, ttgir = result.asm["ptx"], result.asm["ttgir"]
    constants = dict(binary.constants)
    from_registers = re.search(r"warp_group_dot .*opIdx = 0", ttgir)
    return {
        "registers": int(_found(r"Used (\d+) registers", log)),
        "spilled": int(_found(r"(\d+) bytes spill stores", log)),
        "serialized": bool(re.search(SERIALIZED, log.getvalue())),
        "overtaken": bool(from_registers and re.search(r"warp_group_dot_wait .*pendings = [1-9]", ttgir)),
        "early": constants["DEPENDENT"] and machine_code.touches_memory_early(ptx),
        "late": constants.get("ALONE", False) and not machine_code.fetches_early(ptx),
        "shared": result.metadata.shared,
        "code": machine_code.read(result.asm["cubin"]) if disassembled else None,
        "matrix": next((name for name, pattern in MATRIX.items() if re.search(pattern, ptx)), None),
        "products": any(not re.match(EXACT, product) for product in re.findall(r"tt\.dot.*", result.asm["ttir"])),
    }


def _found(pattern: str, log: io.StringIO) -> str:
    found = re.search(pattern, log.getvalue())
    assert found, f"the assembler's log has no {pattern!r}: {log.getvalue()!r}"
    return found[1]


def launches(
    variants: Sequence[str],
    chips: Sequence[int],
    precisions: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
) -> Iterator[tuple[int, str, int, int, str, launch_module.Launch]]:
    """(chip, variant, batch, size, problem, launch) of every kernel of these variants, of preprocessing, and between a
    detector's networks. Around products in 8 bits it is fp16, and chips without products in fp8 are left out of that.
    Batches are of images of 224x224; of any other size there is one image."""
    points = [
        (variant, batch, size)
        for variant in variants
        for size in ((LONG_EDGE,) if variant == DETECTOR else sizes)
        for batch in (batches if size == IMAGE else (1,))
    ]
    for (variant, batch, size), chip, precision in itertools.product(points, chips, precisions):
        if precision == "fp8" and divmod(chip, 10) < CAPABILITY_FP8:
            continue
        stored = precision if precision in FORMATS else None
        rest = "fp32" if precision == "tf32" else around(precision)
        with (
            chips_module.assuming(chips_module.CHIPS[chip]),
            products_of_fp32("tf32" if precision == "tf32" else "ieee"),
        ):
            for call in _calls(variant, batch, rest, stored, size):
                with launch_module.recording() as made:
                    call.run(call.choice)
                for launch in made:
                    yield chip, variant, batch, size, call.plan.problem, launch
            for problem, launch in itertools.chain(preprocessing(), between_networks()):
                yield chip, variant, batch, size, problem, launch


def _calls(variant: str, batch: int, precision: str, stored: str | None, size: int) -> Iterator[dispatch.Call]:
    if variant == DETECTOR:
        yield from detector_calls(precision, stored)
        return
    config = VARIANTS[variant]
    pooled = tuple(f"{block}.pooled" for block in config.feature_blocks)  # as mmpretrain's backbone returns them
    for outputs in (LOGITS, pooled):  # a map that leaves is not made in 8 bits
        yield from recorded_calls(config, batch, precision, outputs, stored, size)


@contextmanager
def products_of_fp32(precision: str) -> Iterator[None]:
    """Inside, PyTorch is told that products of fp32 may be "tf32", or must be exact: "ieee"."""
    matmul = torch.backends.cuda.matmul
    kept, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = kept


def preprocessing() -> Iterator[tuple[str, launch_module.Launch]]:
    """(problem, launch) of the kernel that preprocesses images: what each pass may write."""
    with torch.device("meta"):
        pixels, tables = torch.empty(1, dtype=torch.uint8), torch.empty(1, dtype=torch.int32)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            one = Pass(0, 4, 4, 1, 1, 0, 1, 0, False)
            with launch_module.recording() as made:
                launch_preprocess(pixels, [one], [one], tables, torch.empty((3, 256), dtype=dtype), 22)
            yield "preprocess levels", made[0]
            yield f"preprocess {launch_module.DTYPES[dtype]}", made[1]


def between_networks() -> Iterator[tuple[str, launch_module.Launch]]:
    """(problem, launch) of the kernels between a detector's networks, at the sizes of COCO."""
    with torch.device("meta"), launch_module.recording() as made:
        for dtype, (R, side) in itertools.product(launch_module.DTYPES, ((1000, 7), (100, 14))):
            maps = [torch.empty((1344 // stride, 1344 // stride, 256), dtype=dtype) for stride in STRIDES]
            read_regions([pixels.permute(2, 0, 1) for pixels in maps], torch.empty(R, 4), STRIDES, side)
            yield f"read_regions {launch_module.DTYPES[dtype]} R{R} K256 side{side}", made.pop()
        for N in (100, 5000, 20000):
            kept_of(torch.empty(N, 4), torch.empty(N, dtype=torch.int64), 0.5)
            yield from ((f"nms fp32 N{N}", launch) for launch in made)
            made.clear()


def report(
    variants: Sequence[str],
    chips: Sequence[int],
    precisions: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    disassembled: bool = False,
) -> list[Row]:
    """One row for each different kernel, shape and chip. disassembled: with its machine code, half a second each."""
    unique = {
        (chip, variant, problem, launch.kernel.fn.__name__, launch.tile): (batch, size, launch, binary_of(launch, chip))
        for chip, variant, batch, size, problem, launch in launches(variants, chips, precisions, batches, sizes)
    }
    binaries = list(dict.fromkeys(binary for *_, binary in unique.values()))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(
            pool.map(partial(compiled, disassembled=disassembled), binaries, chunksize=4),
            *("kernels", len(binaries)),
            disable=not sys.stderr.isatty(),
        )
        figures = dict(zip(binaries, progress, strict=True))
    return [
        Row(
            triton.__version__,
            *(chip, variant, batch, size, problem, kernel, tuple(tile)),
            **figures[binary],
            blocks=math.prod(launch.grid),
            iterations=machine_code.iterations(launch),
        )
        for (chip, variant, problem, kernel, tile), (batch, size, launch, binary) in unique.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("kernels_report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--chips", nargs="+", type=int, default=list(chips_module.CHIPS), choices=list(chips_module.CHIPS)
    )
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 128], help="of images of 224x224")
    parser.add_argument("--size", nargs="+", type=int, default=list(SIZES), help="of images; one each beside 224")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--variants", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--estimates", metavar="FILE", help="write the estimates there")
    parser.add_argument("--against", metavar="FILE", help="fail if an estimate is above that file's by more than 3 %%")
    options = parser.parse_args(arguments)
    estimated = bool(options.estimates or options.against)
    points = options.precision, options.batch, options.size
    if estimated and options.chips != [estimate.CHIP.capability]:
        parser.error(f"estimates are of sm_{estimate.CHIP.capability}; add --chips {estimate.CHIP.capability}")
    stored = None
    if options.against:
        try:
            stored = json.loads(Path(options.against).read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--against {options.against} holds no estimates: {error}; write them with --estimates")
    rows = report(options.variants, options.chips, *points, disassembled=estimated)
    if options.json:
        Path(options.json).write_text(
            json.dumps([{**asdict(row), "faults": row.faults} for row in rows], indent=1) + "\n"
        )
    for chip in options.chips:
        name, shared = chips_module.CHIPS[chip].name, chips_module.CHIPS[chip].shared
        print(f"\n{name} (sm_{chip}), {shared} bytes of shared memory a block; Triton {triton.__version__}")
        different = {(row.problem, row.tile, row.kernel): row for row in rows if row.chip == chip}.values()
        print("\n".join(ROWS.lines(row.cells for row in sorted(different, key=lambda row: row.problem))))
    networks = estimate.networks(rows) if estimated else []
    for network in networks:
        print(f"\n{network}")
    if options.estimates:
        Path(options.estimates).write_text(json.dumps(estimate.as_json(networks), indent=1) + "\n")
    grown = estimate.grown(networks, stored) if stored is not None else []
    print("\n".join(["", *grown]))
    faulty = sum(bool(row.faults) for row in rows)
    print(f"{len(rows)} kernels and shapes, {faulty} with faults")
    return 1 if faulty or grown else 0


if __name__ == "__main__":
    sys.exit(main())
