"""Formulas that several kernels share, as functions of Triton."""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """The exact one, of float32."""
    return 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def maximum(x, y):
    """As PyTorch's: NaN stays NaN. tl.maximum alone returns the other number, on a GPU."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    return maximum(x, 0.0)


@triton.jit
def row_statistics(rows, in_range, C, norm_eps, BLOCK_C: tl.constexpr):
    """Of the rows of C that start at the pointers `rows`: their first element, the mean of what they exceed it by, and
    1 / sqrt(variance + norm_eps). Sums of x - first do not cancel where x is large beside its variance."""
    first = tl.load(rows, mask=in_range, other=0.0).to(tl.float32)
    total = tl.zeros_like(first)
    squares = tl.zeros_like(first)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        mask = in_range[:, None] & (c[None, :] < C)
        x = tl.load(rows[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - first[:, None], 0.0)
        total += tl.sum(x, 1)
        squares += tl.sum(x * x, 1)
    mean = total / C
    return first, mean, 1 / tl.sqrt(tl.maximum(squares / C - mean * mean, 0.0) + norm_eps)


@triton.jit
def normalise(x, first, mean, rstd, norm_weight_ptr, norm_bias_ptr, c, C):
    """The layer norm of x, channels c of rows of C with these `row_statistics`."""
    norm_weight = tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) - first[:, None] - mean[:, None]) * rstd[:, None]
    return x * norm_weight[None, :] + norm_bias[None, :]
