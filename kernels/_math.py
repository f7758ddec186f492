"""Formulas that several kernels share, as functions of Triton."""

import triton
import triton.language as tl

ROUNDED = tl.constexpr(12582912.0)  # 3 * 2^22: float32 has integers alone there


@triton.jit
def gelu(x):
    """x times the normal distribution's share below x, of float32, within 2.5e-7: x / 2 (1 + erf) errs by 4.5e-7.

    Below 0 it is x 2^q(-x), with the share as a power of two: q, of degree 8, is fitted to its logarithm up to 6.5,
    where 3e-10 is left. Above it is x less as much. In half the instructions of erf, which took longer than products.
    Of minus infinity it is 0, the limit, where PyTorch multiplies it by 0.
    """
    a = tl.minimum(tl.abs(x), 6.5)
    q = -6.002874783916923e-07 * a + 1.0106025911227334e-05
    q = q * a - 3.215672040823847e-05
    q = q * a - 0.0005571713554672897
    q = q * a + 0.00770359905436635
    q = q * a - 0.053041934967041016
    q = q * a - 0.45896169543266296
    q = q * a - 1.1511565446853638
    q = q * a - 0.999996542930603
    return maximum(x, 0.0) - a * tl.exp2(q)


@triton.jit
def maximum(x, y):
    """As PyTorch's: NaN stays NaN. tl.maximum alone returns the other number, on a GPU."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    return maximum(x, 0.0)


@triton.jit
def stored(x, inverse, dtype: tl.constexpr):
    """x / scale as numbers of `dtype`, INT8 or FP8: rounded half to even, and held within its range. x may be those
    numbers already.

    inverse: 1 / scale. Beside a division the product with it moves a number that is within 2^-15 of a tie at most.
    """
    if x.dtype == dtype:
        return x
    else:
        x = x.to(tl.float32) * inverse
        if dtype == tl.int8:
            x = tl.clamp(x + ROUNDED, ROUNDED - 128, ROUNDED + 127)  # the last bits are now the nearest integer's
            return x.to(tl.int32, bitcast=True).to(tl.int8)
        else:
            return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(dtype)


@triton.jit
def as_read(x, scale_ptr, dtype: tl.constexpr):
    """x in `dtype` as what reads it takes it: if that is INT8 or FP8, the numbers at the scale in memory."""
    if dtype == tl.int8 or dtype == tl.float8e4nv:
        return stored(x, inverse_of(scale_ptr), dtype)
    else:
        return x.to(dtype)


@triton.jit
def inverse_of(scale_ptr):
    """1 / scale, of a scalar in memory."""
    return tl.div_rn(1.0, tl.load(scale_ptr).to(tl.float32))


@triton.jit
def through_8_bits(x, scale_ptr, dtype: tl.constexpr):
    """What remains of x in numbers of `dtype` at the scale in memory, in float32."""
    return stored(x, inverse_of(scale_ptr), dtype).to(tl.float32) * tl.load(scale_ptr).to(tl.float32)


@triton.jit
def zero_sums(M: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr):
    """The sums of products of `dtype`, before the first: of INT8 they are integers."""
    return tl.zeros((M, N), tl.int32 if dtype == tl.int8 else tl.float32)


@triton.jit
def add_product(sums, x, weight, PRECISION: tl.constexpr):
    """sums + x weight."""
    if weight.dtype == tl.float8e4nv:
        # Hopper's FP8 products keep 14 bits of their sums. From step to step they are added in float32.
        return tl.dot(x, weight, sums, max_num_imprecise_acc=x.shape[1])
    else:
        return tl.dot(x, weight, sums, input_precision=PRECISION, out_dtype=sums.dtype)  # Triton 3.6 assumes float32


@triton.jit
def scaled(sums, input_scale_ptr, weight_scale_ptr, n, N):
    """What sums of 8-bit products stand for, in float32. n: their columns of N."""
    weight_scale = tl.load(weight_scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    return sums.to(tl.float32) * (tl.load(input_scale_ptr).to(tl.float32) * weight_scale)[None, :]


@triton.jit
def token_of(m, rows_per_image, width, S: tl.constexpr):
    """The row of a map of tokens, S x S pixels each, that pixel m lies in; `width` pixels are a line."""
    pixel = m % rows_per_image
    token = (m // rows_per_image).to(tl.int64) * (rows_per_image // (S * S))
    return token + pixel // width // S * (width // S) + pixel % width // S


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
def normalize(x, first, mean, rstd, norm_weight_ptr, norm_bias_ptr, c, C):
    """The layer norm of x, channels c of rows of C with these `row_statistics`."""
    norm_weight = tl.load(norm_weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    x = (x.to(tl.float32) - first[:, None] - mean[:, None]) * rstd[:, None]
    return x * norm_weight[None, :] + norm_bias[None, :]
