"""The inference network in 8 bits: what it stores, what it computes, and what it refuses."""

from collections import Counter

import goldens
import pytest
import torch
from eight_bits import largest_inputs
from onnx_8_bits import DTYPE, PRECISION, product_names, session
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.inference.lower import lower
from conformer_fast.inference.ops import NAMESPACE
from conformer_fast.inference.quantization import Quantization, addend_of
from conformer_fast.inference.weights import Weights
from conformer_fast.kernels import dispatch
from conformer_fast.model import functional as CF
from conformer_fast.model.distance import relative_error
from conformer_fast.model.functional import LIMITS
from conformer_fast.model.precision import FORMATS


@PRECISION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_are_sums_of_numbers(precision, dtype):
    """Written out in integers, and in float64 for FP8: what every path computes. The product of both scales is below
    float16's normal numbers, and some quotients are so near a tie that float16 would round them to it."""
    x, weight, bias = (2**-5 * torch.randn(size) for size in ((5, 300), (7, 300), (7,)))
    x, weight, bias = (4 * x).to(dtype), weight.to(dtype), bias.to(dtype)
    quantization = Quantization(precision, {"input": 6.0 * 2**-5})
    numbers, weight_scale = quantization.weight(weight, axis=0)
    input_scale = quantization.scale("input", dtype)
    scaled = (x.float() / input_scale.float()).clamp(*LIMITS[FORMATS[precision]])
    if precision == "int8":
        sums = torch.tensor([[round(value) for value in row] for row in scaled.tolist()]) @ numbers.long().T
    else:
        sums = scaled.to(torch.float8_e4m3fn).double() @ numbers.double().T
    exact = sums * (input_scale.double() * weight_scale.double()) + bias
    ours = CF.linear(x, numbers, bias, input_scale=input_scale, weight_scale=weight_scale)
    assert ours.dtype == dtype
    assert relative_error(ours, exact) < max(1e-6, torch.finfo(dtype).eps / 2)
    assert relative_error(ours, x.double() @ weight.double().T + bias) > 0.001
    assert (x.abs() > 6 * 2**-5).any()  # some were held back


@PRECISION
@DTYPE
def test_quantized_models_store_8_bits_and_compute_in_the_type_around(precision, dtype, small_model):
    fused, image = lower(small_model), goldens.image(1, 64, 96)
    typed = fused.in_precision(dtype)
    before = {name: value.clone() for name, value in typed.named_buffers()}
    model = typed.quantized(Quantization(precision, largest_inputs(fused, [goldens.image(2, 64, 96)])))
    assert set(model.quantizable) == product_names(typed)
    for name in model.quantizable:
        part = model.get_submodule(name)
        assert (part.weight.dtype, part.bias.dtype) == (FORMATS[precision], dtype)
        assert {value.dtype for value in part.scales().values()} == {dtype}
        assert ("addend_scale" in part.scales()) is name.endswith("conv3")
        if part.weight.ndim == 4:
            assert part.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in typed.named_buffers())
    ours, plain = (each.with_outputs(each.output_names)(image) for each in (model, typed))
    assert [value.dtype for value in ours] == [value.dtype for value in plain]


@PRECISION
def test_products_that_are_not_named_stay(precision, small_model):
    typed, image = lower(small_model).in_precision(torch.float16), goldens.image(1, 64, 96)
    model = typed.quantized(Quantization(precision, {"trans_1.fc1": 5.0, addend_of("conv_1.conv3"): 5.0}))
    known = dict(typed.named_buffers())
    stored_ones = {name for name, value in model.named_buffers() if value.dtype == FORMATS[precision]}
    assert stored_ones == {"trans_1.fc1.weight"}
    assert {name for name, _ in model.named_buffers()} - set(known) == {
        "trans_1.fc1.input_scale", "trans_1.fc1.weight_scale"  # and none of an addend alone
    }  # fmt: skip
    assert all(map(torch.equal, typed.quantized(Quantization(precision, {}))(image), typed(image)))


def ranges_of(model, **others):
    """Of all that can be in 8 bits, and the same for all that read a map. others: by the name's last two parts."""
    points = {*model.quantizable, *(addend_of(name) for name in model.quantizable if name.endswith(".conv3"))}
    return {point: others.get("_".join(point.split(".")[1:]), 4.0) for point in points}


def made_in_8_bits(model, images):
    """How many of the tensors that go from operator to operator are in 8 bits, by (what makes it, the result's place),
    and the outputs."""
    seen = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            results = found if isinstance(found, tuple) else (found,)
            if func.namespace == NAMESPACE:
                numbers = (index for index, result in enumerate(results) if result.dtype in FORMATS.values())
                seen.update((func.overloadpacket.__name__, index) for index in numbers)
            return found

    with Watch():
        results = model(images)
    return seen, results


EVERY_RESULT = {
    *((operation, 0) for operation in ("stem", "attention", "linear", "conv1x1", "conv3x3", "conv3x3_pool")),
    *((operation, 1) for operation in ("patch_embed", "linear_norm", "fcu_down", "conv3x3_pool")),
}


@PRECISION
@DTYPE
def test_what_is_read_in_8_bits_is_made_so_and_nothing_changes(precision, dtype, small_model, monkeypatch):
    images = goldens.image(2, 64, 96)
    typed = lower(small_model).in_precision(dtype)
    model = typed.quantized(Quantization(precision, ranges_of(typed)))
    made, ours = made_in_8_bits(model, images)
    assert set(made) == EVERY_RESULT
    monkeypatch.setattr(Weights, "as_read", lambda *_: {})
    monkeypatch.setattr(Weights, "as_added", lambda *_: {})
    made, plain = made_in_8_bits(model, images)
    assert not made
    assert all(map(torch.equal, ours, plain))


@pytest.mark.parametrize(
    ("point", "fewer"),
    [
        ("conv1", {"stem": 1}),  # of conv_1, which the residual's product and the patch embedding read beside it
        ("", {"stem": 1}),  # of the patch embedding, and of the stem itself
        ("cnn_block_residual", {"conv1x1": 2}),  # the map before each of two blocks
        ("fusion_block_conv3_addend", {"conv1x1": 1}),  # what a fusion reads and adds; the last one projects it
        ("down_project", {"conv3x3": 1}),  # where a token is a pixel: it and conv3 read the same
        ("cnn_block_conv3_addend", {}),  # made by a product of its own, for this alone
        ("trans_block_qkv", {}),
    ],
)
def test_a_map_whose_readers_differ_stays(point, fewer, small_model, monkeypatch):
    images, fused = goldens.image(1, 64, 96), lower(small_model)
    alike, _ = made_in_8_bits(fused.quantized(Quantization("int8", ranges_of(fused))), images)
    model = fused.quantized(Quantization("int8", ranges_of(fused, **{point: 5.0})))
    made, ours = made_in_8_bits(model, images)
    missing = alike - made
    assert {operation: missing[operation, 0] for operation, _ in missing} == fewer
    monkeypatch.setattr(Weights, "as_read", lambda *_: {})
    monkeypatch.setattr(Weights, "as_added", lambda *_: {})
    assert all(map(torch.equal, ours, model(images)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_ranges_with_one_scale_are_alike(dtype, small_model):
    typed, images = lower(small_model).in_precision(dtype), goldens.image(1, 64, 96)
    near = typed.quantized(Quantization("int8", ranges_of(typed, conv1=4.0 * (1 + 2**-20))))
    made, _ = made_in_8_bits(near, images)
    assert (made["stem", 0] == 1) is (dtype == torch.float16)


def test_loaded_scales_decide(small_model):
    fused, images = lower(small_model), goldens.image(1, 64, 96)
    ours = fused.quantized(Quantization("int8", ranges_of(fused)))
    other = fused.quantized(Quantization("int8", ranges_of(fused, cnn_block_residual=7.0, down_project=5.0)))
    ours.load_state_dict(other.state_dict())
    assert made_in_8_bits(ours, images)[0] == made_in_8_bits(other, images)[0]
    assert all(map(torch.equal, ours(images), other(images)))


def test_a_map_that_leaves_stays(small_model):
    images, fused = goldens.image(1, 64, 96), lower(small_model)
    model = fused.quantized(Quantization("int8", ranges_of(fused)))
    names = model.output_names
    found = dict(zip(names, model.with_outputs(names)(images), strict=True))
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name in names:
        (alone,) = model.with_outputs([name])(images)
        assert torch.equal(alone, found[name]), name


def test_what_quantized_refuses(small_model):
    fused = lower(small_model)
    with pytest.raises(ValueError, match=r"no products conv_head, trans_9.qkv, but stem, .*; were the ranges measured"):
        fused.quantized(Quantization("int8", {"trans_9.qkv": 1.0, "conv_head": 1.0, "trans_1.qkv": 1.0}))
    with pytest.raises(ValueError, match=r"no products conv_1.conv2.addend, "):  # it adds nothing
        fused.quantized(Quantization("int8", {"conv_1.conv2": 1.0, addend_of("conv_1.conv2"): 1.0}))
    model = fused.quantized(Quantization("int8", {"trans_1.qkv": 1.0}))
    with pytest.raises(ValueError, match=r"trans_1.qkv is in 8 bits already; start from"):
        model.quantized(Quantization("int8", {"trans_1.qkv": 1.0}))
    with pytest.raises(ValueError, match=r"call in_precision\(\) first, then quantized"):
        model.in_precision(torch.float16)


@PRECISION
def test_onnx_runtime_computes_what_pytorch_does(precision, small_model):
    """One definition. In fp32: a few values beside a tie fall on its other side, and an early one changes others."""
    fused, images = lower(small_model), goldens.image(2, 64, 96)
    model = fused.quantized(Quantization(precision, largest_inputs(fused, [images])))
    found = session(onnx_from_model(model)).run(None, {"images": images.numpy()})
    for theirs, ours, exact in zip(map(torch.from_numpy, found), model(images), fused(images), strict=True):
        assert relative_error(theirs, ours) < 0.2 * relative_error(ours, exact)


@PRECISION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_reads_8_bits_if_asked_to(precision, dtype, small_model):
    """Numbers that the joint projection makes, multiplied in the type around them."""
    fused, images = lower(small_model), goldens.image(2, 64, 96)
    quantization = Quantization(precision, largest_inputs(fused, [images]))
    typed = fused.in_precision(dtype)
    plain, model = typed.quantized(quantization), typed.quantized(quantization, attended=True)
    assert model.trans_1.qkv.makes == (model.trans_1.qkv.result_scale.item(), quantization.dtype)
    qkv = torch.randn(2, 5, 3 * 48).to(quantization.dtype)
    scale = torch.tensor(0.1, dtype=dtype)
    found = CF.attention(qkv, 3, 1.0, qkv_scale=scale)
    assert found.dtype == dtype
    assert torch.equal(found, CF.attention((qkv.float() * scale.float()).to(dtype), 3, 1.0))
    expected, without, exact = (sum(network(images)) for network in (model, plain, fused))
    assert not torch.equal(expected, without)
    assert relative_error(expected, exact) < 3 * relative_error(without, exact)
    del quantization.ranges["trans_1.qkv"]
    assert typed.quantized(quantization, attended=True).trans_1.qkv.makes is None


def test_kernels_leave_8_bit_attention_to_pytorch():
    qkv = torch.zeros(1, 5, 3 * 64, dtype=torch.int8)
    assert "reads no 8 bits" in dispatch.PLANS["attention"](qkv, 1, 1.0, None, None, torch.tensor(0.1)).unsupported
