"""Tracing: the graph of the network, while other threads go on as if nothing happened."""

import threading

import torch
from torch import fx, nn

from conformer_fast import create_model
from conformer_fast.inference.lower import lower
from conformer_fast.inference.trace import trace


def traced_beside_a_running_module(tracing) -> list[Exception]:
    """What another thread's module raised while this one traced a network 20 times."""
    network, other = lower(create_model("digits")), nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    ended, errors = threading.Event(), []

    def run() -> None:
        while not ended.is_set():
            try:
                other(torch.zeros(1, 4))
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            tracing(network)
    finally:
        ended.set()
        thread.join()
    return errors


def test_other_threads_modules_run_on():
    assert traced_beside_a_running_module(trace) == []
    assert traced_beside_a_running_module(fx.symbolic_trace)  # what it is for: if this ends, PyTorch has mended it


def test_several_threads_trace_at_once(small_model):
    network, found = lower(small_model), []
    threads = [threading.Thread(target=lambda: found.append(trace(network))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    images = torch.randn(2, 3, 32, 32)
    expected = network(images)
    assert len(found) == 8
    for graph in found:
        assert all(torch.equal(*pair) for pair in zip(graph(images), expected, strict=True))
