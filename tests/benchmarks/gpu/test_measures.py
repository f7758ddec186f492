"""What the GPU suite measures, on the CPU and by a clock that the test controls."""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_suite_samples import CEILINGS

from benchmarks import recorded
from benchmarks.gpu import clock, facts, kernels, points, roofline
from benchmarks.gpu.roofline import Ceilings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_gpu_needed(monkeypatch):
    ticks = itertools.count(1)

    def turn(call, calls):
        call()
        return [1e-2 * next(ticks)] * calls

    monkeypatch.setattr(clock, "turn", turn)
    monkeypatch.setattr(clock, "ROUNDS", 2)
    monkeypatch.setattr(clock, "of_graph", lambda calls: [call() for call in calls] and 1e-5)
    for module in (points, kernels, facts):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for module in (points, recorded):
        monkeypatch.setattr(module, "IMAGE", 64)
    roofline.in_order.cache_clear()
    gpu = SimpleNamespace(L2_cache_size=1000, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    reserved = itertools.count(100, 10)
    for name in ("memory_reserved", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: next(reserved))
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    yield
    roofline.in_order.cache_clear()


def test_ceilings(no_gpu_needed, monkeypatch):
    """What is measured, of small products: the clock is the test's."""
    monkeypatch.setattr(facts, "SHAPES", ((32, 16, 64), (48, 32, 16)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 20, 8 << 20))
    launched = []
    for name in ("empty_kernel", "dependent_kernel"):

        class Kernel:
            def __getitem__(self, grid, name=name):
                return lambda **options: launched.append((name, options))

        monkeypatch.setattr(facts, name, Kernel())

    def of_graph(calls):
        result = calls[0]()
        if not isinstance(calls[0], functools.partial):
            return 3e-6 if isinstance(result, torch.Tensor) else 1e-6 if launched[-1][1] else 2e-6
        return 3e-6 if calls[0].keywords["out"].nbytes == 2 * (1600 // 32) else 4e-6

    monkeypatch.setattr(clock, "of_graph", of_graph)
    torch.cuda.get_device_properties().L2_cache_size = 1600
    first, *_, found = facts.measure()
    assert list(first) == ["products"]  # a run that is killed has what it measured
    assert launched == [("empty_kernel", {}), ("dependent_kernel", {"launch_pdl": True})]
    ceilings = Ceilings(**found["ceilings"])
    assert (ceilings.gap, ceilings.dependent_gap, ceilings.l2_bytes) == (2e-6, 1e-6, 800)
    assert ceilings.l2_bytes_per_second == pytest.approx(2 * 100 / 1e-6)
    assert ceilings.l2_bytes_per_second > ceilings.bytes_per_second
    monkeypatch.setattr(clock, "of_graph", lambda calls: 1e-6)  # a cache too small to tell: no faster than memory
    again = facts.ceilings(found["products"])
    assert again["l2_bytes_per_second"] == again["bytes_per_second"]
    assert list(found["products"]) == ["32x16x64", "48x32x16"]
    for precision, rate in ceilings.flops_per_second.items():
        assert rate == max(row[precision] for row in found["products"].values())
    assert set(ceilings.flops_per_second) == {"fp16", "int8", "fp8"}
    assert "fp8" not in facts.products((8, 6))["32x16x64"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("precision", facts.PRODUCTS)
def test_products_are_products(precision, monkeypatch):
    monkeypatch.setattr(facts, "DEVICE", "cpu")
    product = facts.PRODUCTS[precision](32, 16, 64)
    x, weight = (torch.as_tensor(cell.cell_contents) for cell in product.__closure__ if cell.cell_contents.ndim == 2)
    if x.shape != (32, 64):
        x, weight = weight, x
    torch.testing.assert_close(product().float(), x.float() @ weight.float().T, rtol=2e-3, atol=1e-2)


@pytest.mark.slow
def test_the_dependent_kernel_compiles_for_hopper():
    code = (
        "import triton; from triton.backends.compiler import GPUTarget; from triton.compiler import ASTSource\n"
        "from benchmarks.gpu.facts import dependent_kernel\n"
        "source = ASTSource(dependent_kernel, {}, {}, {})\n"
        "print(triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'launch_pdl': True}).asm['ptx'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    for instruction in ("griddepcontrol.launch_dependents", "griddepcontrol.wait"):
        assert instruction in printed.stdout, printed.stderr


def test_turns_and_their_ratios(no_gpu_needed):
    times = clock.in_turn({"peer": lambda: None, "ours": lambda: None}, seconds=0.1)
    # Ticks 1 to 4 warm up and choose 3 and 2 calls; then 5 and 7 are the peer's rounds, 6 and 8 ours.
    assert (times["peer"].median, times["peer"].calls) == (pytest.approx(0.06), 6)
    assert (times["ours"].low, times["ours"].high, times["ours"].calls) == (pytest.approx(0.06), pytest.approx(0.08), 4)
    assert times["ours"].speedup == pytest.approx((5 / 6 + 7 / 8) / 2)


def test_a_point(no_gpu_needed):
    torch.manual_seed(0)
    row = points.measure("eager", "digits", 2, CEILINGS)
    assert 1e-5 < row["error"] < 1e-2
    assert row["peak_bytes"] == 10
    assert row["images_per_second"] == pytest.approx(2e3 / row["ms"])
    assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert row["share_of_fused_floor"] == pytest.approx(row["fused_floor_ms"] / row["ms"])
    assert row["tflops"] == pytest.approx(row["flops"] / row["ms"] / 1e9)
    assert "ours_failed" in row or row["ours_speedup"] > 0
    json.dumps(row, allow_nan=False)


def test_launches_share_all_but_the_weights(no_gpu_needed):
    operation = next(o for o in roofline.network("digits", 1) if o.name == "linear" and o.arguments["gelu"])
    sets = [launch.args[1] for launch in kernels.launches_of(operation)]
    assert len(sets) == kernels.LEAST
    x, weight, bias, gelu, residual, *_ = map(list, zip(*sets, strict=True))
    assert len({value.data_ptr() for value in x}) == 1
    for own in (weight, bias):
        assert len({value.data_ptr() for value in own}) == len(sets)
    assert set(zip(gelu, residual, strict=True)) == {(True, None)}


def test_a_pair_is_measured_apart_too(no_gpu_needed, monkeypatch):
    monkeypatch.setattr(kernels.dispatch, "choose", lambda plan, gpu: (kernels.dispatch.PYTORCH, "for this test"))
    sizes = (2, 8, 8, 24), (96, 24), (96,), (2, 8, 8, 96), (40, 96), (40,), (2, 4, 40)
    arguments = [*(torch.randn(size) for size in sizes), 4]
    whole = functools.partial(kernels._run, roofline.PAIR, arguments)
    with kernels.dispatch.calls() as made:
        found = kernels._apart(whole)()
    assert [call.operation for call in made] == ["conv1x1", "conv1x1"]
    for value, same in zip(found, whole(), strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_a_table_of_kernels(precision, no_gpu_needed, monkeypatch):
    monkeypatch.setattr(kernels.dispatch, "choose", lambda plan, gpu: (kernels.dispatch.PYTORCH, "for this test"))
    *_, before, table = kernels.measure("digits", 1, precision, CEILINGS)
    rows = table["operations"]
    assert len(rows) == len(before["operations"]) + 1  # a run that is killed has what it measured
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert table["sum_ms"] == pytest.approx(sum(row["count"] for row in rows) * 1e-2)
    lost = [row["count"] * (row["us"] - row["floor_us"]) for row in rows]
    assert lost == sorted(lost, reverse=True)
    assert {row["reason"] for row in rows} == {"for this test"}
    assert all(row["pytorch_us"] > 0 for row in rows)
    json.dumps(table, allow_nan=False)
