"""How fast the CPU multiplies, as OpenVINO does it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("openvino")

import conformer_fast as cf
from conformer_fast.engines.ceiling import Ceiling
from conformer_fast.engines.openvino import backend, executors, products
from conformer_fast.engines.timing import seconds_of


@pytest.fixture
def measured(monkeypatch):
    """What was measured: precision, options and requests of each product, which all take a second."""
    calls = []

    def seconds(model, options, count):
        calls.append((options["INFERENCE_PRECISION_HINT"], options["NUM_STREAMS"], count))
        return 1.0

    monkeypatch.setattr(products, "_seconds", seconds)
    products._best.cache_clear()
    yield calls
    products._best.cache_clear()


LARGEST = 2 * 2048 * 2048 * 512  # operations of the largest of SHAPES


def test_the_best_shape_by_as_many_requests_as_threads_or_by_one(measured):
    assert products.product_rates(["fp32", "int8"], 3) == {"fp32": 3 * LARGEST, "int8": 3 * LARGEST}
    assert {(hint, streams, count) for hint, streams, count in measured} == {("f32", "1", 1), ("f32", "3", 3)}
    assert len(measured) == 2 * 2 * len(products.SHAPES)


def test_a_process_measures_once(measured, monkeypatch):
    before = [products.product_rates(["bf16"], 1) for _ in range(2)]
    assert before == [{"bf16": LARGEST}] * 2
    assert len(measured) == len(products.SHAPES)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # which makes another CPU
    products.product_rates(["bf16"], 1)
    assert len(measured) == 2 * len(products.SHAPES)


def test_the_ceiling_of_a_backend_is_that_of_its_threads(measured, monkeypatch):
    monkeypatch.setattr(backend, "cpu_memory", lambda threads: {threads: 1.0})
    monkeypatch.setattr(cf.OpenVINO, "fastest", lambda self: ("bf16", "as told"))
    assert cf.OpenVINO(threads=2).ceiling("fp32", "cpu") == Ceiling({"fp32": 2 * LARGEST}, {2: 1.0}, "fp32")
    in_8_bits = cf.OpenVINO(threads=2).ceiling("int8", "cpu")
    assert (in_8_bits.products.keys(), in_8_bits.around) == ({"int8", "bf16"}, "bf16")
    assert cf.OpenVINO(device="AUTO").ceiling("fp32", "cpu") is None


@pytest.mark.slow
def test_rates_of_this_cpu():
    """In fp32 within a factor of 20 of PyTorch's product on as many threads; in 8 bits between a twentieth and 64 times
    of that in fp32, of which the fastest instructions, AMX, have 32 times the products."""
    live = executors._live.copy()
    products._best.cache_clear()
    rates = products.product_rates(("fp32", "int8"), 1)
    products._best.cache_clear()
    assert 1 / 20 < rates["fp32"] / multiplying() < 20
    assert 1 / 20 < rates["int8"] / rates["fp32"] < 64
    assert executors._live == live


def multiplying() -> float:
    """Operations a second of PyTorch's product on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return 2 * 512**3 / min(seconds_of(lambda matrix: matrix @ matrix, torch.ones(512, 512)) for _ in range(6))
    finally:
        torch.set_num_threads(threads)
