"""Many threads at once: the first requests of several sizes while no engine is built, beside a program's other modules.

The graphs of 20 rounds of them are recorded by tests/inference/test_trace.py, without the engines.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import conformer_fast as cf

pytest.importorskip("openvino")
pytest.importorskip("onnx")

SIZES = [(32, 32), (48, 32), (32, 48), (48, 48), (64, 32), (32, 64), (64, 48), (48, 64)]


def test_first_requests_on_a_cold_cache(small_model, modules_beside, monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    fast = cf.compile(small_model, backend="openvino", precision="fp32", threads=1)
    batches = [torch.randn(1, 3, *size) for size in SIZES] * 2
    start = threading.Barrier(len(batches))

    def first(batch):
        start.wait()
        return fast(batch).logits

    with ThreadPoolExecutor(len(batches)) as pool, torch.no_grad():
        for batch, logits in zip(batches, pool.map(first, batches), strict=True):
            torch.testing.assert_close(logits, small_model(batch).logits, rtol=1e-3, atol=1e-3)
    assert modules_beside == []
    assert nn.Sequential(nn.Linear(2, 2))(torch.zeros(1, 2)).shape == (1, 2)
