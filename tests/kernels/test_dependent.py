"""Kernels that are launched before the one before them ends: each waits before it touches memory, on GPUs that can."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from kernel_checks import Sample, launches, make, shape

from benchmarks.machine_code import fetches_early, touches_memory_early
from conformer_fast import kernels
from conformer_fast.kernels import launch, linear
from conformer_fast.kernels.chips import CHIPS, Chip, assuming
from conformer_fast.kernels.tiles import Tile

FILES = sorted(Path(next(iter(kernels.__path__))).glob("*.py"))
SAMPLE = Sample("", "linear", (shape(3, 5, 24), shape(20, 24), shape(20)))


def functions() -> dict[str, ast.FunctionDef]:
    """Triton's, of all files."""
    found = (node for file in FILES for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return {node.name: node for node in found if any("triton.jit" in ast.unparse(one) for one in node.decorator_list)}


def touching(node: ast.AST, known: dict[str, ast.FunctionDef]) -> set[str]:
    """What it calls that reads or writes memory, in other functions of ours too."""
    names = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    direct = {name for name in names if name.startswith(("tl.load", "tl.store", "tl.atomic"))}
    return direct | {name for name in names & known.keys() if touching(known[name], known)}


def test_every_kernel_waits_once_before_it_touches_memory():
    known = functions()
    all_kernels = [node for name, node in known.items() if name.endswith("_kernel")]
    assert len(all_kernels) >= 10
    for kernel in all_kernels:
        waits = [ast.unparse(node) == "wait_for_earlier(DEPENDENT)" for node in kernel.body]
        assert waits.count(True) == ast.unparse(kernel).count("wait_for_earlier(") == 1, kernel.name
        for node in kernel.body[: waits.index(True)]:
            assert not touching(node, known), f"{kernel.name}: {ast.unparse(node)}"
        assert any(touching(node, known) for node in kernel.body), kernel.name


@pytest.mark.parametrize("chip", CHIPS)
def test_gpus_that_can(chip):
    with assuming(CHIPS[chip]):
        (recorded,) = launches(SAMPLE.operation, make(SAMPLE, torch.float16))
    assert recorded.arguments["DEPENDENT"] is (chip in (90, 100))


@pytest.mark.parametrize("driver", [12020, 12030])
@pytest.mark.parametrize("capability", [89, 90, 103, 120])
def test_a_launch_says_so_too(capability, driver, monkeypatch):
    class Kernel:
        arg_names = ("x_ptr", "DEPENDENT")

        def __getitem__(self, grid):
            return lambda **arguments: given.update(arguments)

    class OnGPU(torch.Tensor):
        device = torch.device("cuda", 0)

    given = {}
    monkeypatch.setattr(launch, "chip_of", lambda device: Chip("a GPU", capability, 100, 100_000, driver))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    launch.launch(Kernel(), (1,), Tile(16, 16, 16, 4, 2), x_ptr=torch.zeros(1).as_subclass(OnGPU))
    assert given["DEPENDENT"] is given.get("launch_pdl", False) is (capability in (90, 103) and driver == 12030)


@pytest.mark.parametrize("chip", CHIPS)
def test_small_grids_fetch_their_weight_before_they_wait(chip):
    """Where a program has a multiprocessor for itself; where none waits, there is nothing to be before."""
    convolved, normed = shape(2, 8, 8, 24), (shape(2, 5, 20), shape(20), shape(20), 1e-5)
    small = [
        SAMPLE,
        Sample("", "conv3x3", (convolved, shape(20, 24, 3, 3), shape(20))),
        Sample("", "linear_norm", (shape(2, 5, 24), shape(20, 24), shape(20), *normed)),
    ]
    large = Sample("", "conv1x1", (shape(8, 56, 56, 24), shape(20, 24), shape(20)))
    with assuming(CHIPS[chip]):
        alone = [launches(sample.operation, make(sample, torch.float16))[0].arguments["ALONE"] for sample in small]
        (crowded,) = launches(large.operation, make(large, torch.float16))
    assert alone == [chip in (90, 100)] * len(small)
    assert crowded.arguments["ALONE"] is False
    assert crowded.arguments["DEPENDENT"] is (chip in (90, 100))


def test_the_interpreter_has_no_such_launch(monkeypatch):
    given = {}
    kernel = inspect.getattr_static(linear, "linear_kernel")
    monkeypatch.setattr(type(kernel), "__getitem__", lambda *_: lambda **arguments: given.update(arguments))
    launch.launch(kernel, (1,), Tile(16, 16, 16, 4, 2), x_ptr=torch.zeros(1))
    assert given["DEPENDENT"] is False
    assert "launch_pdl" not in given


WAITING = """
    ld.param.b64 %rd1, [linear_kernel_param_0];
    ld.shared.b32 %r9, [%r8];
    griddepcontrol.wait; // dummy %r16
    griddepcontrol.launch_dependents; // dummy %r17
    cp.async.cg.shared.global [ %r18 + 0 ], [ %rd15 + 0 ], 0x10, %r19;
    @%p1 bra $L__BB0_2;
    st.global.b32 [%rd2], %r3;
"""


@pytest.mark.parametrize(
    "first",
    [
        "ld.global.b32 %r1, [%rd1];",
        "@%p1 st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};",
        "cp.async.bulk.tensor.2d.shared::cluster.global [%r1], [%rd1];",
        "red.global.add.f32 [%rd1], %f1;",
        "ld.volatile.global.b32 %r1, [%rd1];",
        "@%p1 bra $L__BB0_2;",
        "bra.uni $L__BB0_2;",
        "@%p1 ret;",
        "call.uni (retval0), vprintf, (param0, param1);",
        "ld.shared::cluster.b32 %r1, [%r2];",
    ],
)
def test_what_may_not_stand_before_the_wait(first):
    assert not touches_memory_early(WAITING)
    prefetch = "@wanted prefetch.global.L2 [%rd1];"
    assert not touches_memory_early(prefetch + WAITING)  # it reads nothing
    assert (fetches_early(prefetch + WAITING), fetches_early(WAITING + prefetch)) == (True, False)
    assert not touches_memory_early("@%p1 bra $L__BB0_1;\n$L__BB0_1:\n" + WAITING)  # of a long division
    assert touches_memory_early(first + WAITING)
    assert touches_memory_early(WAITING.replace("griddepcontrol.wait", "griddepcontrol.launch_dependents"))
    assert touches_memory_early(WAITING.replace("griddepcontrol.wait", "@%p1 griddepcontrol.wait"))
