"""What is read from machine code, and the times that are made of it."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from benchmarks import estimate, machine_code
from benchmarks.estimate import CHIP, busy, grown, networks, occupancy
from benchmarks.gpu import roofline
from benchmarks.machine_code import MachineCode, Part
from conformer_fast.kernels.tiles import Tile

ASSEMBLY = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64], P0 ;
.L_x_0:
        /*0020*/                   LDG.E.U16 R5, desc[UR4][R2.64] ;
.L_x_1:
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0050*/                   LDGSTS.E.BYPASS.128 [R9+0x1000], desc[UR4][R2.64], P0 ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/              @!P1 BRA `(.L_x_1) ;
        /*0080*/                   IMMA.16832.S8.S8 R4, R8.ROW, R9.COL, R4 ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
        /*00a0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   FADD R1, R1, R1 ;
.L_x_2:
        /*00d0*/                   BRA `(.L_x_2);
"""


def test_parts_of_a_program():
    """A loop within a loop; what stands behind the end is no part."""
    code = machine_code.parse(ASSEMBLY)
    assert code.outside == Part(4, 0, 0, 2 * 512, 512, 1, 0)
    outer, inner = code.loops
    assert outer == Part(3, 2 * 16 * 8 * 32, 0, 64, 0, 0, 0)
    assert inner == Part(5, 2 * 64 * 128 * 16 // 4, (64 + 128) * 32 // 4, 512, 512, 0, 1)


def test_a_left_operand_in_registers_is_not_read_from_shared_memory():
    code = machine_code.parse(ASSEMBLY.replace("R24, gdesc[UR8], R24", "R24, R8, gdesc[UR8], R24"))
    assert code.loops[1].operands == 128 * 32 // 4


@pytest.mark.parametrize(
    ("kernel", "arguments", "expected"),
    [
        ("linear_kernel", {"K": 130, "BLOCK_K": 64}, (3,)),
        ("conv3x3_kernel", {"K": 130, "BLOCK_K": 64}, (27,)),
        ("heads_kernel", {"pixels": 49, "BLOCK_P": 64, "K": 1024, "BLOCK_K": 256, "C": 384}, (4, 2, 2)),
        ("norm_kernel", {}, ()),
    ],
)
def test_iterations(kernel, arguments, expected):
    launch = SimpleNamespace(kernel=SimpleNamespace(fn=SimpleNamespace(__name__=kernel)), arguments=arguments)
    assert machine_code.iterations(launch) == expected


CODE = MachineCode(Part(500, 0, 0, 512, 0, 1, 1), (Part(100, 2**18, 2**12, 1024, 1024, 0, 2),))


@dataclass(frozen=True)
class Launch:
    """What an estimate reads of a row of the report."""

    registers: int = 128
    shared: int = 96 * 1024
    tile: tuple[int, ...] = Tile(128, 128, 64, 8, 3)
    blocks: int = 1320
    iterations: tuple[int, ...] = (6,)
    problem: str = "linear fp16 M1 N1 K1"
    code: MachineCode = CODE
    chip: int = 90
    size: int = 224
    variant: str = "digits"
    batch: int = 1


def changed(launch=Launch(), **loop):
    return replace(launch, code=MachineCode(launch.code.outside, (launch.code.loops[0]._replace(**loop),)))


def test_blocks_at_a_time():
    assert occupancy(Launch()) == 2
    assert occupancy(Launch(registers=129)) == 1  # registers are given out in pieces of 8 a thread
    assert occupancy(Launch(shared=128 * 1024)) == 1
    assert occupancy(Launch(registers=32, shared=0)) == 8  # 64 warps


def test_what_takes_longer():
    plain = busy(Launch())
    assert busy(Launch(blocks=2640)) == pytest.approx(2 * plain)
    assert busy(Launch(blocks=1321)) > plain  # one more round
    assert busy(Launch(registers=129)) > plain  # one block at a time: nothing hides its end
    assert busy(Launch(iterations=(7,))) > plain
    assert busy(changed(awaited=1)) > plain
    assert busy(changed(asynchronous=0)) > plain
    for work in (
        {"instructions": 10**4},
        {"flops": 10**7},
        {"operands": 10**6},
        {"loaded": 10**6, "asynchronous": 10**6},
    ):
        assert busy(changed(**work)) > 2 * plain


def test_no_kernel_whose_loops_are_not_counted():
    with pytest.raises(ValueError, match="zip"):
        busy(Launch(iterations=()))


def network_of(operations):
    return networks([Launch(problem=operation.problem) for operation in operations])


def test_a_network_is_the_sum_of_its_calls():
    operations = roofline.network("digits", 1, "fp16")
    (network,) = network_of(operations)
    assert not network_of(operations[1:])  # a part is none
    assert (network.variant, network.batch, network.precision) == ("digits", 1, "fp16")
    one = busy(Launch()) + estimate.CEILINGS.least_gap
    assert network.kernels == sum(operation.count for operation in operations)
    assert network.seconds == pytest.approx(network.kernels * one)
    assert network.floor == pytest.approx(sum(o.count * o.floor(estimate.CEILINGS) for o in operations))
    assert "linear fp16" in str(network)


def test_an_estimate_that_grows_is_told():
    (network,) = network_of(roofline.network("digits", 1, "fp16"))
    stored = estimate.as_json([network])
    assert not grown([network], stored)
    stored["networks"][0]["seconds"] /= 1.029
    assert not grown([network], stored)
    stored["networks"][0]["seconds"] /= 1.002
    (line,) = grown([network], stored)
    assert line.startswith("digits, batch 1, fp16: the estimate grew from ")
    assert grown([network], stored | {"networks": []}) == ["digits, batch 1, fp16: no estimate is stored"]
    assert "no estimate to compare" in grown([], stored)[0]
    assert "of Triton 1.0, these" in grown([network], stored | {"triton": "1.0"})[0]


def test_the_chip_is_the_one_of_the_ceilings():
    assert CHIP.name == "NVIDIA H100"
