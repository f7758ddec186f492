"""The custom operators: registered soundly, right in every precision, for odd sizes and for any strides."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import pytest
import torch
from eight_bits import in_8_bits
from torch import Tensor

from conformer_fast.inference import ops
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model import functional as CF
from conformer_fast.model.precision import FORMATS

ROUNDING = {  # largest relative error, in half-steps of the dtype: what an operator's own roundings may add up to
    torch.float32: 32,  # a sum of up to 1000 products: the square root of that many roundings
    torch.bfloat16: 4,  # sums are kept in float32; four results are rounded at most
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


class Sample(NamedTuple):
    """One call. Tensors are given as shapes; `tensors` fills them."""

    label: str
    op: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def tensors(self, dtype: torch.dtype, layout: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> list[Any]:
        """The arguments, the same random values every time, each tensor passed through `layout`."""
        generator = torch.Generator().manual_seed(0)

        def fill(argument):
            if not isinstance(argument, Shape):
                return argument
            return layout(torch.randn(argument, generator=generator, dtype=torch.float64).to(dtype))

        return [fill(argument) for argument in self.args]


class Shape(tuple):
    """A tensor argument's shape."""


def shape(*sizes: int) -> Shape:
    return Shape(sizes)


def _linear_samples() -> list[Sample]:
    rows, weight, bias = shape(3, 5, 24), shape(20, 24), shape(20)
    norm, residual = (shape(20), shape(20), 1e-6), shape(3, 5, 20)
    return [
        Sample("plain", "linear", (rows, weight, bias)),
        Sample("gelu", "linear", (rows, weight, bias, True)),
        Sample("residual", "linear", (rows, weight, bias, False, residual)),
        Sample("everything", "linear", (rows, weight, bias, True, residual)),
        Sample("B1-T1", "linear", (shape(1, 1, 24), weight, bias, True, shape(1, 1, 20))),
        Sample("matrix", "linear", (shape(5, 24), weight, bias)),
        Sample("B3-T5", "linear_norm", (rows, weight, bias, residual, *norm)),
        Sample("matrix", "linear_norm", (shape(1, 24), weight, bias, shape(1, 20), *norm)),
    ]


def _conv3x3_samples() -> list[Sample]:
    weight, bias = shape(10, 6, 3, 3), shape(10)
    return [
        Sample(
            f"B{B}-{H}x{W}-stride{stride}{'' if relu else '-linear'}",
            "conv3x3",
            (shape(B, H, W, 6), weight, bias, stride, relu),
        )
        for B, H, W in [(3, 5, 7), (1, 1, 1), (1, 4, 9)]
        for stride, relu in ((1, True), (2, True), (1, False))
    ]


def _coupled_samples() -> list[Sample]:
    """Of the 1x1 convolution that adds FCU-up's map."""
    return [
        Sample(
            f"B{B}-{h}x{w}-tokens-{S}-stride{stride}",
            "conv1x1",
            (
                shape(B, h * S * stride, w * S * stride, 6),
                *(shape(10, 6), shape(10), stride, True, None, shape(B, h * w, 10), S),
            ),
        )
        for B, h, w, S, stride in [(3, 2, 3, 4, 1), (1, 3, 1, 2, 2), (3, 1, 1, 1, 1), (1, 1, 2, 8, 1), (1, 2, 1, 3, 2)]
    ]


def _pair_samples() -> list[Sample]:
    """Of 1x1 convolutions that follow each other, without and with FCU-up's map."""
    weights = (shape(10, 6), shape(10)), (shape(7, 10), shape(7))
    return [
        Sample(
            f"B{B}-{h}x{w}-tokens-{S}",
            "conv1x1_pair",
            (
                *(shape(B, h * S, w * S, 6), *weights[0], shape(B, h * S, w * S, 10), *weights[1]),
                *((shape(B, h * w, 7), S) if tokens else ()),
            ),
        )
        for B, h, w, S, tokens in [(3, 2, 3, 4, True), (1, 3, 1, 1, True), (3, 5, 7, 1, False), (1, 1, 1, 1, False)]
    ]


NORM = (shape(24), shape(24), 1e-5)  # weight, bias and eps of tokens

SAMPLES = [
    Sample("B3-T5-heads3", "attention", (shape(3, 5, 72), 3, 1.0)),
    Sample("B1-T1-heads1", "attention", (shape(1, 1, 72), 1, 0.5)),
    Sample("B1-T50-heads2", "attention", (shape(1, 50, 96), 2, 16**-0.5)),
    *_linear_samples(),
    Sample("B3-33x47", "stem", (shape(3, 3, 33, 47), shape(16, 3, 7, 7), shape(16), 4)),
    Sample("B1-exact", "stem", (shape(1, 3, 32, 48), shape(16, 3, 7, 7), shape(16), 4)),
    Sample("B1-gray-1x1", "stem", (shape(1, 1, 1, 1), shape(16, 1, 7, 7), shape(16), 12)),
    Sample("B3-4x8", "patch_embed", (shape(3, 4, 8, 10), shape(1, 1, 24), shape(24, 10, 4, 4), shape(24), *NORM)),
    Sample("B1-one", "patch_embed", (shape(1, 8, 8, 10), shape(1, 1, 24), shape(24, 10, 8, 8), shape(24), *NORM)),
    Sample("B3-5x7", "conv1x1", (shape(3, 5, 7, 6), shape(10, 6), shape(10))),
    Sample("linear", "conv1x1", (shape(3, 5, 7, 6), shape(10, 6), shape(10), 1, False)),
    Sample("strided", "conv1x1", (shape(3, 5, 7, 6), shape(10, 6), shape(10), 2, False)),
    Sample("residual", "conv1x1", (shape(1, 5, 7, 6), shape(10, 6), shape(10), 1, True, shape(1, 5, 7, 10))),
    Sample("strided-residual", "conv1x1", (shape(3, 5, 8, 6), shape(10, 6), shape(10), 2, True, shape(3, 3, 4, 10))),
    Sample("B1-1x1", "conv1x1", (shape(1, 1, 1, 6), shape(10, 6), shape(10), 2)),
    *_coupled_samples(),
    *_pair_samples(),
    *_conv3x3_samples(),
    *(
        Sample(
            f"B{B}-{H}x{W}-stride{stride}-pool{S}",
            "conv3x3_pool",
            (shape(B, H, W, 6), shape(10, 6, 3, 3), shape(10), stride, S),
        )
        for B, H, W, stride, S in [(3, 4, 8, 1, 4), (1, 8, 4, 2, 2), (3, 3, 6, 1, 3), (1, 1, 1, 1, 1)]
    ),
    *(
        Sample(
            f"B{B}-{h}x{w}-stride{S}",
            "fcu_down",
            (shape(B, h * S, w * S, 6), shape(B, 1 + h * w, 24), shape(24, 6), shape(24), *NORM, S, *NORM),
        )
        for B, h, w, S in [(3, 2, 3, 4), (1, 3, 1, 2), (3, 2, 2, 1), (1, 1, 1, 8), (1, 1, 2, 3)]
    ),
    *(
        Sample(
            f"B{B}-{h}x{w}",
            "lateral",
            (shape(B, 2 * h, 2 * w, 6), shape(10, 6), shape(10), shape(B, h, w, 10)),
        )
        for B, h, w in [(3, 2, 5), (1, 1, 1), (1, 3, 1)]
    ),
    *(
        Sample(f"B{B}-{H}x{W}", op, (shape(B, H, W, 8),))
        for op in ("every_second", "unfolded")
        for B, H, W in [(3, 5, 8), (1, 1, 1), (1, 4, 1), (2, 1, 3)]
    ),
    Sample("B3-T7", "fcu_up", (shape(3, 7, 24), shape(6, 24), shape(6))),
    Sample("B1-T2", "fcu_up", (shape(1, 2, 24), shape(6, 24), shape(6))),
    Sample("B3-3x5", "pool", (shape(3, 3, 5, 6), shape(3, 7, 24), *NORM)),
    Sample("B1-1x1", "pool", (shape(1, 1, 1, 6), shape(1, 2, 24), *NORM)),
    Sample(
        "B3-3x5",
        "heads",
        (shape(3, 3, 5, 6), shape(3, 7, 24), *NORM, shape(11, 6), shape(11), shape(11, 24), shape(11)),
    ),
    Sample(
        "B1-one-class",
        "heads",
        (shape(1, 1, 1, 6), shape(1, 2, 24), *NORM, shape(1, 6), shape(1), shape(1, 24), shape(1)),
    ),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def in_the_middle(tensor: Tensor) -> Tensor:
    """The same values inside a larger tensor of NaN, so that a step taken outside shows."""
    larger = tensor.new_full([size + 2 for size in tensor.shape], torch.nan)
    view = larger[(slice(1, -1),) * tensor.ndim]
    return view.copy_(tensor)


def channels_first(tensor: Tensor) -> Tensor:
    """The same values in the memory order of (B, K, H, W), as a permuted map has them."""
    return tensor if tensor.ndim < 3 else tensor.movedim(-1, 1).contiguous().movedim(1, -1)


def transposed(tensor: Tensor) -> Tensor:
    """The same values in reversed memory order."""
    dims = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(dims).contiguous().permute(dims)


LAYOUTS = pytest.mark.parametrize("layout", [in_the_middle, channels_first, transposed])


def call(sample: Sample, arguments: list[Any]) -> list[Tensor]:
    output = ops.OPS[sample.op](*arguments)
    return [output] if isinstance(output, Tensor) else list(output)


def test_every_operator_has_samples():
    assert {sample.op for sample in SAMPLES} == set(ops.OPS)
    assert len({str(sample) for sample in SAMPLES}) == len(SAMPLES)


def test_every_operator_is_in_torch_ops_and_in_functional():
    for name in ops.OPS:
        assert getattr(torch.ops.conformer_fast, name)
        assert getattr(ops, name) is ops.OPS[name]
        assert getattr(CF, name).__doc__


@EACH
def test_opcheck(sample):
    torch.library.opcheck(ops.OPS[sample.op], sample.tensors(torch.float32))


IN_8_BITS = [sample for sample in SAMPLES if "weight_scale" in signature(getattr(CF, sample.op)).parameters]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("sample", IN_8_BITS[::2], ids=str)
def test_in_8_bits(sample, precision):
    """Operators take the scales, and return the type of the biases: the weights' says nothing about results."""
    quantization = Quantization(precision, {"input": 3.0, "addend": 3.0})
    arguments = in_8_bits(sample.op, sample.tensors(torch.bfloat16), quantization)
    expected = getattr(CF, sample.op)(*arguments)
    expected = [expected] if isinstance(expected, Tensor) else expected
    for value, same in zip(call(sample, arguments), expected, strict=True):
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, same)
    checks = ["test_faketensor"] + ["test_schema"] * (precision == "int8")  # it compares no tensors of FP8
    torch.library.opcheck(ops.OPS[sample.op], arguments, test_utils=checks)


@EACH
@LAYOUTS
def test_any_strides(sample, layout):
    arguments = sample.tensors(torch.float64, layout)
    expected = call(sample, sample.tensors(torch.float64))
    for value, same in zip(call(sample, arguments), expected, strict=True):
        assert value.is_contiguous() or value.ndim < 4
        torch.testing.assert_close(value, same, rtol=1e-12, atol=1e-12)
    torch.library.opcheck(ops.OPS[sample.op], arguments, test_utils=("test_schema", "test_faketensor"))


@EACH
@DTYPES
def test_cpu_values_are_those_of_functional(sample, dtype):
    expected = getattr(CF, sample.op)(*sample.tensors(dtype))
    expected = [expected] if isinstance(expected, Tensor) else expected
    for value, same in zip(call(sample, sample.tensors(dtype)), expected, strict=True):
        assert value.dtype == dtype
        assert value.is_contiguous()
        assert torch.equal(value, same)


@EACH
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_error_is_that_of_rounding(sample, dtype):
    arguments = sample.tensors(dtype)
    exact = [argument.double() if isinstance(argument, Tensor) else argument for argument in arguments]
    for value, expected in zip(call(sample, arguments), call(sample, exact), strict=True):
        error = (value.double() - expected).norm() / expected.norm()
        assert error < ROUNDING[dtype] * torch.finfo(dtype).eps / 2
