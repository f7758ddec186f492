"""What compute-sanitizer watches: every kernel, recorded here on tensors without data."""

import pytest
import torch

from benchmarks.gpu import sanitize
from conformer_fast.inference import ops
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.kernels import dispatch, launch


@pytest.fixture
def on_meta(monkeypatch):
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *sizes, device=None, **rest: randn(*sizes, device="meta", **rest))
    monkeypatch.setattr(InferenceConformer, "cuda", lambda self: self.to("meta"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))  # without fp8, which nothing interprets
    with ops.on_kernels(), launch.recording() as launched:
        yield launched


def test_every_kernel_runs(on_meta):
    assert sanitize.run() == {}
    between_networks = {"read_regions_kernel", "removes_kernel", "kept_kernel"}  # no operators
    assert between_networks <= {one.kernel.fn.__name__ for one in on_meta}


def test_a_kernel_that_did_not_is_named(on_meta, monkeypatch):
    monkeypatch.setitem(dispatch.PLANS, "another", dispatch.PLANS["linear"])
    with pytest.raises(AssertionError, match=r"no kernel ran in fp32 for .*another"):
        sanitize.run()
