"""Ceilings: what follows from given rates; and those of this machine."""

from __future__ import annotations

import pytest

import conformer_fast as cf
from conformer_fast.engines import ceiling, reference
from conformer_fast.engines.ceiling import Ceiling
from conformer_fast.engines.tensorrt import backend as tensorrt_backend
from conformer_fast.engines.triton import backend as triton_backend
from conformer_fast.inference.work import Work

NETWORK = [Work("fp32", 600, 50, 1000), Work("int8", 400, 300, 8000)]


def test_products_each_at_their_own_rate():
    assert Ceiling({"fp32": 100, "int8": 400}, {}, "fp32").multiplying(NETWORK) == 10 + 20


def test_weights_together_and_activations_one_by_one():
    """At the rate of the largest block that is no larger. The smallest activations fit a cache that nothing is known
    of, and cost nothing."""
    given = Ceiling({}, {100: 50.0, 500: 10.0, 2000: 1.0}, "fp32")
    assert given.moving(NETWORK) == 1000 / 10 + 300 / 50


def test_memory_is_measured(monkeypatch):
    monkeypatch.setattr(ceiling, "BLOCKS", (1 << 16, 1 << 20))
    monkeypatch.setattr(ceiling, "MOVED", 1 << 20)
    ceiling.cpu_memory.cache_clear()
    found = ceiling.cpu_memory(2)
    ceiling.cpu_memory.cache_clear()
    assert found.keys() == {1 << 16, 1 << 20}
    assert all(1e7 < rate < 1e13 for rate in found.values())


def test_a_rate_is_of_the_bytes_that_all_threads_moved(monkeypatch):
    """Each of three threads goes through its third of the block twice, in one second."""
    moved = []
    monkeypatch.setattr(ceiling, "BLOCKS", (1200,))
    monkeypatch.setattr(ceiling, "MOVED", 800)
    monkeypatch.setattr(ceiling, "_copy_half", lambda part: moved.append(part.nbytes))
    monkeypatch.setattr(ceiling, "seconds_of", lambda call, tensor: (call(tensor), 1.0)[1])
    ceiling.cpu_memory.cache_clear()
    assert ceiling.cpu_memory(3) == {1200: 2400.0}
    ceiling.cpu_memory.cache_clear()
    assert moved == [400] * 6 * (1 + ceiling.ROUNDS)


def test_products_by_pytorch(monkeypatch):
    monkeypatch.setitem(ceiling.SIDE, "cpu", 64)
    monkeypatch.setattr(ceiling, "cpu_memory", lambda threads: {1: 2.0})
    monkeypatch.setattr(ceiling, "seconds_of", lambda call, matrix: (call(matrix), 0.5)[1])
    ceiling.by_pytorch.cache_clear()
    found = ceiling.by_pytorch("bf16", "cpu")
    ceiling.by_pytorch.cache_clear()
    assert found == Ceiling({"bf16": 2 * 64**3 / 0.5}, {1: 2.0}, "bf16")
    assert ceiling.by_pytorch("int8", "cpu") is None


def test_of_another_device_memory_is_one_block_beyond_its_caches(monkeypatch):
    """What a GPU is asked, of a device that computes nothing."""
    monkeypatch.setitem(ceiling.SIDE, "meta", 64)
    monkeypatch.setattr(ceiling, "seconds_of", lambda call, tensor: (call(tensor), 0.5)[1])
    ceiling.by_pytorch.cache_clear()
    found = ceiling.by_pytorch("fp16", "meta")
    ceiling.by_pytorch.cache_clear()
    assert found == Ceiling({"fp16": 4 * 64**3}, {ceiling.GPU_BLOCK: 2 * ceiling.GPU_BLOCK}, "fp16")


@pytest.mark.parametrize("backend", [cf.Triton(), cf.TensorRT(), cf.Reference()], ids=lambda backend: backend.name)
def test_backends_that_ask_pytorch(backend, monkeypatch):
    given = Ceiling({"fp16": 1.0}, {}, "fp16")
    for module in (reference, triton_backend, tensorrt_backend):
        monkeypatch.setattr(module, "by_pytorch", lambda precision, device: given if device == "cuda:1" else None)
    assert backend.ceiling("fp16", "cuda:1") is given


def test_it_is_measured_once(monkeypatch):
    monkeypatch.setitem(ceiling.SIDE, "cpu", 8)
    monkeypatch.setattr(ceiling, "cpu_memory", lambda threads: {})
    ceiling.by_pytorch.cache_clear()
    first, second = (ceiling.by_pytorch("fp32", "cpu") for _ in range(2))
    ceiling.by_pytorch.cache_clear()
    assert first is second


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_copies_are_of_halves(share):
    import numpy as np

    part = np.concatenate([np.full(4, share), np.full(4, 7)]).astype(np.float32)
    ceiling._copy_half(part)
    assert part.tolist() == [7] * 8
