"""Formulas that kernels share, on their own."""

import kernel_checks
import torch
import triton
import triton.language as tl

from conformer_fast.kernels._math import gelu


@triton.jit
def gelu_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(out_ptr + i, gelu(x), mask=i < size)


def through_gelu(x):
    x = x.float().to(kernel_checks.DEVICE)
    out = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024)
    return out.double().cpu()


def test_gelu_errs_as_little_as_float32_can():
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float32)
    exact = torch.nn.functional.gelu(x.double())
    assert (through_gelu(x) - exact).abs().max() < 3e-7  # half a bit of 5


def test_gelu_keeps_the_negative_tail():
    """Where 1 + erf cancels: of what an fp16 product reads, no bit is lost."""
    x = torch.linspace(-5, -0.5, 20_001, dtype=torch.float32)
    exact = torch.nn.functional.gelu(x.double())
    assert ((through_gelu(x) - exact) / exact).abs().max() < 2**-12


def test_gelu_of_what_is_far_out():
    x = torch.tensor([0.0, -0.0, 40.0, 3e38, torch.inf, -7.0, -40.0, -3e38, -torch.inf, torch.nan])
    expected = torch.tensor([0.0, 0.0, 40.0, 3e38, torch.inf, 0.0, 0.0, 0.0, 0.0, torch.nan]).double()
    torch.testing.assert_close(through_gelu(x), expected, rtol=1e-6, atol=1e-9, equal_nan=True)
