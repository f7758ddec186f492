"""Programmatic dependent launch: a kernel is launched while the one before it still runs, and waits for it to end.

Every kernel waits before it touches memory, so each sees all that was written before it: the one before it had waited
in turn. What goes on meanwhile is the launch, and finding out where the program's part lies. The report
(benchmarks/kernels_report.py) proves the order in the PTX of every kernel.

Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
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
def wait_for_earlier(DEPENDENT: tl.constexpr):
    """Before a kernel's first access to memory. DEPENDENT: whether it may be launched before the one before it ends."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
