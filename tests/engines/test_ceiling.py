"""Ceilings: what follows from given rates; and those of this machine."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines import ceiling, reference
from conformer_fast.engines.ceiling import Ceiling
from conformer_fast.engines.tensorrt import backend as tensorrt_backend
from conformer_fast.engines.timing import seconds_of
from conformer_fast.engines.triton import backend as triton_backend
from conformer_fast.inference.work import Work, of_network
from conformer_fast.model.config import VARIANTS

NETWORK = [Work("fp32", 600, 50, 1000), Work("int8", 400, 300, 8000)]


def test_products_each_at_their_own_rate():
    assert Ceiling({"fp32": 100, "int8": 400}, {}, "fp32").multiplying(NETWORK) == 10 + 20


def test_weights_together_and_activations_one_by_one():
    """At the rate of the largest block that is no larger. The smallest activations fit a cache that nothing is known
    of, and cost nothing."""
    given = Ceiling({}, {100: 50.0, 500: 10.0, 2000: 1.0}, "fp32")
    assert given.moving(NETWORK) == 1000 / 10 + 300 / 50


def test_memory_is_measured(monkeypatch):
    """Within a factor of 20 of how fast this thread copies as many bytes."""
    monkeypatch.setattr(ceiling, "BLOCKS", (1 << 16, 1 << 20))
    ceiling.cpu_memory.cache_clear()
    found = ceiling.cpu_memory(2)
    ceiling.cpu_memory.cache_clear()
    assert found.keys() == {1 << 16, 1 << 20}
    for size, rate in found.items():
        assert 1 / 20 < rate / copying(size) < 20


def copying(size: int) -> float:
    """Bytes read or written a second of a block of `size` bytes, whose halves bytearrays are."""
    one, other = bytearray(b"1" * (size // 2)), bytearray(size // 2)
    repeats = (16 << 20) // size

    def copy(_):
        for _ in range(repeats):
            one[:] = other

    return repeats * size / min(seconds_of(copy, torch.empty(0)) for _ in range(6))


def test_each_thread_makes_what_it_moves(monkeypatch):
    """On a machine of two sockets the memory is then near it."""
    made, moved, ones = {}, [], np.ones

    def noted(*args):
        made[threading.get_ident()] = ones(*args)
        return made[threading.get_ident()]

    monkeypatch.setattr(ceiling, "BLOCKS", (1200,))
    monkeypatch.setattr(ceiling, "MOVED", 800)
    monkeypatch.setattr(np, "ones", noted)
    monkeypatch.setattr(ceiling, "_copy_half", lambda part: moved.append(made[threading.get_ident()] is part))
    ceiling.cpu_memory.cache_clear()
    ceiling.cpu_memory(3)
    ceiling.cpu_memory.cache_clear()
    assert len(made) == 3
    assert moved == [True] * 6 * (1 + ceiling.ROUNDS)


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
    ceiling._by_pytorch.cache_clear()
    found = ceiling.by_pytorch("bf16", "cpu")
    ceiling._by_pytorch.cache_clear()
    assert found == Ceiling({"bf16": 2 * 64**3 / 0.5}, {1: 2.0}, "bf16")
    assert ceiling.by_pytorch("int8", "cpu") is None


@pytest.fixture
def gpu(monkeypatch):
    """What a GPU with a cache of 50 MiB is asked, of a device that computes nothing, and takes half a second for it."""
    asked = []
    properties = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setitem(ceiling.SIDE, "meta", 64)
    monkeypatch.setattr(ceiling, "seconds_of", lambda call, tensor: (asked.append(tensor.nbytes), call(tensor), 0.5)[2])
    monkeypatch.setattr(torch.cuda, "get_device_properties", {"meta": properties}.get)
    ceiling._by_pytorch.cache_clear()
    yield asked
    ceiling._by_pytorch.cache_clear()


def test_of_a_gpu_memory_is_what_its_cache_cannot_hold(gpu):
    """Timed by a block far beyond it."""
    found = ceiling.by_pytorch("fp16", "meta")
    assert found == Ceiling({"fp16": 4 * 64**3}, {50 << 20: 2 * ceiling.GPU_BLOCK}, "fp16")
    assert ceiling.GPU_BLOCK in gpu
    assert found.moving([Work("fp16", 0, (50 << 20) - 1, 0)]) == 0
    assert found.moving([Work("fp16", 0, 50 << 20, 0)]) == (50 << 20) / (2 * ceiling.GPU_BLOCK)


@pytest.mark.parametrize("batch", [8, 128])
def test_a_network_moves_bytes_on_a_gpu(gpu, batch):
    """At batch 8 its weights at least; at 128 most of what lies between its operations too."""
    network = of_network(VARIANTS["small-p16"], (batch, 3, 224, 224), "fp16")
    seconds = ceiling.by_pytorch("fp16", "meta").moving(network)
    everything = sum(one.weights + one.activations for one in network) / (2 * ceiling.GPU_BLOCK)
    weights = sum(one.weights for one in network) / (2 * ceiling.GPU_BLOCK)
    assert weights <= seconds <= everything
    assert batch == 8 or seconds > everything / 2


@pytest.mark.parametrize("backend", [cf.Triton(), cf.TensorRT(), cf.Reference()], ids=lambda backend: backend.name)
def test_backends_that_ask_pytorch(backend, monkeypatch):
    given = Ceiling({"fp16": 1.0}, {}, "fp16")
    for module in (reference, triton_backend, tensorrt_backend):
        monkeypatch.setattr(module, "by_pytorch", lambda precision, device: given if device == "cuda:1" else None)
    assert backend.ceiling("fp16", "cuda:1") is given


def test_it_is_measured_once(monkeypatch):
    monkeypatch.setitem(ceiling.SIDE, "cpu", 8)
    monkeypatch.setattr(ceiling, "cpu_memory", lambda threads: {})
    ceiling._by_pytorch.cache_clear()
    first, second = (ceiling.by_pytorch("fp32", "cpu") for _ in range(2))
    ceiling._by_pytorch.cache_clear()
    assert first is second


def test_it_is_measured_for_each_number_of_threads(monkeypatch):
    monkeypatch.setitem(ceiling.SIDE, "cpu", 8)
    monkeypatch.setattr(ceiling, "cpu_memory", lambda threads: {threads: 1.0})
    ceiling._by_pytorch.cache_clear()
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(ceiling.by_pytorch("fp32", "cpu").memory)
    ceiling._by_pytorch.cache_clear()
    assert found == [{1: 1.0}, {2: 1.0}]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_copies_are_of_halves(share):
    part = np.concatenate([np.full(4, share), np.full(4, 7)]).astype(np.float32)
    ceiling._copy_half(part)
    assert part.tolist() == [7] * 8
