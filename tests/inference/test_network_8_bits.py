"""The inference network in 8 bits: what it stores, what it computes, and what it refuses."""

import goldens
import pytest
import torch
from eight_bits import largest_inputs
from onnx_8_bits import DTYPE, PRECISION, product_names, session
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import Weights
from conformer_fast.inference.ops import NAMESPACE
from conformer_fast.inference.quantization import Quantization, addend_of
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
    """Which of the tensors that go from operator to operator are in 8 bits: (what makes it, the result's place)."""
    seen = set()

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
    assert made == EVERY_RESULT
    monkeypatch.setattr(Weights, "as_read", lambda *_: {})
    monkeypatch.setattr(Weights, "as_added", lambda *_: {})
    made, plain = made_in_8_bits(model, images)
    assert not made
    assert all(map(torch.equal, ours, plain))


def test_a_map_whose_readers_differ_stays(small_model, monkeypatch):
    images, fused = goldens.image(1, 64, 96), lower(small_model)
    differing = {
        "conv1": {("stem", 0)},  # of conv_1, beside its residual's and the patch embedding
        "cnn_block_conv3": {("conv3x3", 0)},  # where a pixel is a token, FCU-down reads the same map
    }
    for point, kept in differing.items():
        model = fused.quantized(Quantization("int8", ranges_of(fused, **{point: 5.0})))
        made, ours = made_in_8_bits(model, images)
        assert made <= EVERY_RESULT
        if point == "conv1":
            assert not kept & made
        monkeypatch.setattr(Weights, "as_read", lambda *_: {})
        monkeypatch.setattr(Weights, "as_added", lambda *_: {})
        assert all(map(torch.equal, ours, model(images)))
        monkeypatch.undo()


def test_a_map_that_leaves_stays(small_model):
    images, fused = goldens.image(1, 64, 96), lower(small_model)
    model = fused.quantized(Quantization("int8", ranges_of(fused)))
    names = model.output_names
    found = dict(zip(names, model.with_outputs(names)(images), strict=True))
    assert {value.dtype for value in found.values()} == {torch.float32}
    alone = {name: model.with_outputs([name])(images)[0] for name in ("1.map", "2.map", "2.pooled", "3.map", "logits")}
    for name, value in alone.items():
        assert torch.equal(value, found[name])


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
