"""Which 8-bit numbers stand for weights and activations, and the file of a quantization."""

import json
import math
import os

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx_8_bits import DTYPE, PRECISION, session

from conformer_fast.engines.onnx.typed_graph import ELEMENT_TYPES
from conformer_fast.errors import ArgumentError, ArgumentTypeError
from conformer_fast.inference.quantization import LARGEST, LARGEST_FILE, Quantization
from conformer_fast.model.distance import relative_error
from conformer_fast.model.functional import LIMITS, stored
from conformer_fast.model.precision import FORMATS


def weights_of(kind: str, dtype: torch.dtype) -> torch.Tensor:
    """(8, 6, 3, 3), each output channel a hostile case of its own."""
    weight = torch.randn(8, 6, 3, 3)
    channels = torch.ones(8)
    if kind == "tiny":  # below what float16 counts as normal, down to nothing
        channels = torch.tensor([1.0, 1e-2, 1e-3, 1e-4, 1e-6, 1e-7, 1e-30, 1e-44])
    elif kind == "zero":
        channels = torch.tensor([0.0, 1.0, 0.0, 1e-3, 0.0, 1.0, 1.0, 0.0])
    elif kind == "huge":  # the largest that the type holds
        weight = weight / weight.abs().amax((1, 2, 3), keepdim=True)
        channels = torch.finfo(dtype).max * torch.tensor([1.0, 0.5, 1e-3, 1.0, 0.1, 1.0, 1e-5, 1.0])
    return (weight * channels.view(-1, 1, 1, 1)).to(dtype)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["usual", "tiny", "zero", "huge"])
@DTYPE
@PRECISION
def test_weights_err_by_half_a_step_at_most(precision, dtype, kind, axis):
    """Half a step of the scale as it is stored; FP8's steps are those of its numbers: an eighth of the power of two."""
    weight = weights_of(kind, dtype)
    if axis == 1:
        weight = weight.transpose(0, 1)
    numbers, scale = Quantization(precision, {}).weight(weight, axis)
    assert (numbers.dtype, scale.dtype, scale.shape) == (FORMATS[precision], dtype, (8,))
    assert (scale > 0).all()
    assert numbers.double().abs().max() <= LARGEST[numbers.dtype]
    exact, numbers = (value.double().transpose(0, axis).flatten(1) for value in (weight, numbers))
    scaled = exact / scale.double()[:, None]
    half_step = 0.5 if precision == "int8" else scaled.abs().clamp(min=2**-6).log2().floor().exp2() / 16
    assert ((numbers - scaled).abs() <= half_step * (1 + 1e-6)).all()
    assert (numbers[exact == 0] == 0).all()
    if kind in ("usual", "huge"):  # the format's range is used to its end
        assert (numbers.abs().amax(1) >= 0.99 * LARGEST[FORMATS[precision]]).all()


@pytest.mark.parametrize("axis", [0, 1])
@DTYPE
def test_int8_weights_are_what_pytorch_quantizes_to(dtype, axis):
    weight = torch.randn(8, 12, 3, 3).to(dtype)
    numbers, scale = Quantization("int8", {}).weight(weight, axis)
    largest = weight.abs().float().amax([dimension for dimension in range(4) if dimension != axis])
    assert torch.allclose(scale.float(), largest / 127, rtol=torch.finfo(dtype).eps)
    exact = scale.float()
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    simulated = torch.fake_quantize_per_channel_affine(weight.float(), exact, zeros, axis, -127, 127)
    shape = [-1 if dimension == axis else 1 for dimension in range(4)]
    assert torch.equal(numbers * exact.view(shape), simulated)


@DTYPE
def test_fp8_weights_are_what_pytorch_casts_to(dtype):
    weight = torch.randn(8, 12).to(dtype)
    numbers, scale = Quantization("fp8", {}).weight(weight, axis=0)
    assert torch.allclose(scale.float(), weight.abs().float().amax(1) / 448, rtol=torch.finfo(dtype).eps)
    theirs = (weight.float() / scale.float()[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(numbers.view(torch.uint8), theirs.view(torch.uint8))


@PRECISION
def test_small_channels_of_float16_keep_their_bits(precision):
    """A folded norm or attention scale makes such channels. A scale held to float16's normal numbers would leave 16
    steps of 127."""
    weight = (torch.randn(4, 400) * torch.tensor([[1.0], [1e-2], [1e-3], [4e-4]])).half()
    numbers, scale = Quantization(precision, {}).weight(weight, axis=0)
    restored = numbers.double() * scale.double()[:, None]
    errors = [relative_error(row, exact) for row, exact in zip(restored, weight, strict=True)]
    assert max(errors) <= 1.3 * errors[0]


@PRECISION
def test_no_size_of_a_channel_is_cut_off(precision):
    """A scale that float16 rounds down lets the largest value exceed the format, by less than half a step."""
    weight = torch.logspace(0, -7, 4000)[:, None].half()
    numbers, scale = Quantization(precision, {}).weight(weight, axis=0)
    last_half_step = {"int8": 0.5, "fp8": 16.0}[precision]
    assert ((weight.double() / scale.double()[:, None] - numbers.double()).abs() <= last_half_step).all()


@DTYPE
@PRECISION
def test_scales_of_activations(precision, dtype):
    ranges = {"usual": 5.0, "zero": 0.0, "tiny": 1e-12, "large": 6e4}
    quantization = Quantization(precision, ranges)
    scales = {name: quantization.scale(name, dtype) for name in ranges}
    largest = LARGEST[FORMATS[precision]]
    for scale in scales.values():
        assert (scale.dtype, scale.shape) == (dtype, ())
        assert 0 < scale < math.inf
    for name in ("usual", "large"):
        assert scales[name].item() == pytest.approx(ranges[name] / largest, rel=torch.finfo(dtype).eps)
    assert scales["zero"] == 1
    assert scales["tiny"] <= 1e-5


def quantize_linear(value: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ONNX's QuantizeLinear stores in `dtype`, as fp32."""
    element = ELEMENT_TYPES[value.dtype]
    zero = helper.make_tensor("zero", ELEMENT_TYPES[dtype], [], [0])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["stored"]),
            helper.make_node("Cast", ["stored"], ["y"], to=TensorProto.FLOAT),
        ],
        "quantize",
        [helper.make_tensor_value_info("x", element, [None]), helper.make_tensor_value_info("scale", element, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return torch.from_numpy(session(model).run(None, {"x": value.numpy(), "scale": scale.numpy()})[0])


HALVES = {
    "int8": torch.arange(-300, 301) / 2,  # each number, each tie between two, and beyond the range
    "fp8": torch.cat([torch.arange(-1000, 1001) / 2, torch.arange(-200, 201) * 2.0**-11]),  # subnormal ties too
}


@pytest.mark.parametrize("values", ["random", "halfway"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@PRECISION
def test_numbers_are_those_of_quantize_linear(precision, dtype, values):
    scale = torch.tensor(0.25 if values == "halfway" else 0.0237, dtype=dtype)
    scaled = HALVES[precision] if values == "halfway" else torch.randn(20000) * LARGEST[FORMATS[precision]] / 2
    value = (scaled * scale.float()).to(dtype)
    theirs = quantize_linear(value, scale, FORMATS[precision])
    ours = stored(value.float() / scale.float(), FORMATS[precision]).float()
    assert torch.equal(ours, theirs)
    assert (ours.min(), ours.max()) == LIMITS[FORMATS[precision]]


def test_a_quantization_survives_its_file(tmp_path):
    quantization = Quantization("fp8", {"a": 0.1, "b": 3e38}, {"a": (0.5, 1 / 3)}, {"images": 7})
    file = quantization.save(tmp_path / "q.json")
    found = Quantization.load(file)
    assert found == quantization
    assert found.origin == quantization.origin


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("[]", "is no quantization: its format is None"),
        ('{"format": "other"}', "is no quantization: its format is 'other'"),
        ('{"format": "conformer-fast quantization 1"}', "is a damaged quantization .*precision"),
        ({"precision": "int4"}, "precision must be one of int8, fp8, got 'int4'"),
        (
            {"ranges": {"a": -1}},
            r"damaged quantization: the range of a must be a number from 0 to 3.4028.*e\+38, got -1; calibrate again",
        ),
        ({"ranges": {"a": "1"}}, r"got '1'"),
        ({"ranges": {"a": None}}, "damaged quantization"),
        ({"ranges": {"a": float("inf")}}, "got inf"),
        ({"smoothing": {"a": [True]}}, "the smoothing of a must be a number from 0 .* got True"),
        ({"ranges": []}, "damaged quantization"),
        ({"ranges": {"a": 10**400}}, "damaged quantization"),
        ({"ranges": {"a": float("nan")}}, "got nan"),
        ({"ranges": {"a": 1e39}}, r"got 1e\+39"),
        ({"origin": 3}, "damaged quantization"),
        ("[" * 100_000, "is no JSON"),
        ({"precision": "x" * 1000}, r"damaged quantization: .{,220}; calibrate again"),
        ({"format": "x" * 1000}, r"its format is 'x{,76}\.\.\., not"),
    ],
)
def test_files_that_are_none(content, message, tmp_path):
    file = tmp_path / "q.json"
    if isinstance(content, dict):
        Quantization("int8", {"a": 1.0}).save(file)
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        Quantization.load(file)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 1e39, True, "1"])
def test_what_is_no_magnitude_is_refused(value):
    """An engine would compute nothing but NaN from it, or fail when it is built."""
    with pytest.raises(ArgumentError, match="the range of b must be a number from 0"):
        Quantization("int8", {"a": 1.0, "b": value})
    with pytest.raises(ArgumentError, match="the smoothing of a must be a number from 0"):
        Quantization("int8", {}, {"a": (value, 1.0)})


def test_numbers_of_other_types_are_taken():
    given = Quantization("int8", {"a": np.float32(0.5), "b": 1, "c": np.int64(2)}, {"a": np.ones(2, np.float32)})
    same = Quantization("int8", {"a": 0.5, "b": 1.0, "c": 2.0}, {"a": (1.0, 1.0)})
    assert given == same
    assert given.digest == same.digest


@pytest.mark.parametrize(
    "arguments", [("int8", ["a"]), ("int8", {}, None), ("int8", {"a": torch.tensor(1.0)}), (["int8"], {})], ids=str
)
def test_what_is_none_is_refused(arguments):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="must be"):
        Quantization(*arguments)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """It would be waited for, or read for ever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", LARGEST_FILE + 1)  # of zeros, which take no room
    for file in (tmp_path / "fifo", "/dev/zero", tmp_path / "large"):
        with pytest.raises(ArgumentError, match=f"{file} is no quantization: it must be a regular file of up to 64 MB"):
            Quantization.load(file)
    with pytest.raises(ArgumentError, match=r"q\\x00.json is no quantization: it must be a regular file"):
        Quantization.load("q\0.json")
    for missing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArgumentError, match=f"{missing} cannot be read .*; `conformer-fast calibrate -o` writes"):
            Quantization.load(missing)
