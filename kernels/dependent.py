"""Programmatic dependent launch: a kernel is launched while the one before it still runs, and waits for it to end.

Every kernel waits before it touches memory, so each sees all that was written before it: the one before it had waited
in turn. What goes on meanwhile is the launch, finding out where the program's part lies and, in small grids, fetching
the weights from memory: all of them together are more than the L2 cache holds from one image to the next. The report
(benchmarks/kernels_report.py) proves the order in the PTX of every kernel.

Sources: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA, "prefetch".
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .chips import Chip

DRIVER = 12030  # CUDA 12.3: the first whose graphs can hold such launches (the guide, "CUDA Graphs", edge data)


def can_be_dependent(chip: Chip) -> bool:
    """From compute capability 9.0 on, but not on 12.0, where recording a CUDA graph with it has failed for others
    (sgl-project/sglang#18596), nor with a driver that cannot record it."""
    return 90 <= chip.capability < 120 and chip.driver >= DRIVER


@triton.jit
def fetch_weight(weight_ptr, elements, ALONE: tl.constexpr):
    """Before the wait: brings a weight of so many elements into the L2 cache, a share of it by each program. That is
    32 KB at most: of a large weight, where programs are few, the rest is left. Nothing is read, so it does not matter
    who is still writing. ALONE: whether to, as programs have a multiprocessor each."""
    if ALONE:
        LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth  # elements of 128 bytes
        line = tl.program_id(0) + tl.num_programs(0) * tl.arange(0, 256)
        wanted = line < tl.cdiv(elements, LINE)
        address = (weight_ptr + tl.where(wanted, line, 0) * LINE).to(tl.int64)
        tl.inline_asm_elementwise(
            """{
                .reg .pred wanted;
                setp.ne.b32 wanted, $2, 0;
                @wanted prefetch.global.L2 [$1];
                mov.b32 $0, 0;
            }""",
            "=r,l,r",
            [address, wanted.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def wait_for_earlier(DEPENDENT: tl.constexpr):
    """Before a kernel's first access to memory. DEPENDENT: whether it may be launched before the one before it ends."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
