"""compile() with the backend "triton", on a pretended torch.cuda."""

import pytest
import torch
from executor_samples import assert_same, equal, images
from graphs_samples import CPU
from torch import nn

import conformer_fast as cf


def test_compile_takes_the_gpu_of_the_module(cuda, monkeypatch):
    entered = []

    class OnGPU(nn.Module):
        def parameters(self, recurse=True):
            yield nn.Parameter(torch.zeros(1))
            yield type("Parameter", (), {"is_cuda": True, "device": torch.device("cuda:1")})

    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or torch.no_grad())
    with pytest.raises(cf.CheckpointError):  # it is no Conformer, but its place was looked up
        cf.compile(OnGPU().eval())
    assert entered == [torch.device("cuda:1")]


def test_compile_on_the_gpu(cuda, small_model):
    fast = cf.compile(small_model, backend="triton")
    assert (fast.settings.precision, fast.settings.device, fast.device) == ("fp16", "cpu", CPU)
    assert fast.reason == "triton fp16: the fastest precision of the GPU"
    batch = images(3, 3, 40, 48)
    with torch.no_grad():
        assert_same(fast(batch), small_model(batch), 1e-2)
    assert fast.verify(batch).within
    assert not equal(fast(batch), cf.compile(small_model, backend="triton", precision="fp32")(batch))
