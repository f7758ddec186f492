"""Tracing: the graph of the network, while other threads go on as if nothing happened."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx, nn

from conformer_fast.inference.lower import lower
from conformer_fast.inference.trace import trace

THREADS = 16
ROUNDS = 20


def traced_at_once(network, tracing) -> list:
    """What each of THREADS threads got that trace the network at the same time."""
    start = threading.Barrier(THREADS)

    def one(_):
        start.wait()
        return tracing(network)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


@pytest.mark.slow
def test_threads_trace_at_once_and_other_modules_run_on(small_model, modules_beside):
    network = lower(small_model)
    once = str(trace(network))
    for _ in range(ROUNDS):
        assert {str(graph) for graph in traced_at_once(network, trace)} == {once}
    assert modules_beside == []


def test_nothing_of_the_process_is_replaced_while_a_network_is_traced(small_model, monkeypatch):
    """fx.symbolic_trace does: if this ends, PyTorch has mended it (pytorch/pytorch#112775)."""
    network, seen = lower(small_model), []

    def forward(images, forward=network.forward):
        seen.append((nn.Module.__call__, nn.Module.__getattr__, fx._symbolic_trace.is_fx_tracing()))
        return forward(images)

    monkeypatch.setattr(network, "forward", forward)
    usual = nn.Module.__call__, nn.Module.__getattr__, False
    trace(network)
    assert seen == [usual]
    monkeypatch.setattr(type(network), "forward", lambda self, images: forward(images))
    fx.Tracer().trace(network)
    assert seen[1] != usual


def test_the_graph_computes_what_the_network_does(small_model):
    network, images = lower(small_model), torch.randn(2, 3, 32, 32)
    graph = fx.GraphModule(network, trace(network))
    assert all(torch.equal(*pair) for pair in zip(graph(images), network(images), strict=True))
