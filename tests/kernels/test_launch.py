"""What lies between launchers and Triton: reordered weights, recorded launches, precisions."""

import gc
import weakref

import pytest
import torch
from kernel_checks import Sample, fine, launches, make, shape

from conformer_fast.kernels import dispatch
from conformer_fast.kernels import launch as launch_module
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.launch import dot_precision, prepared, product_type


def reordered(weight):
    return weight.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_prepared_weight_is_made_once_and_does_not_keep_the_weight_alive(memory_format):
    weight = torch.randn(4, 6, 3, 3).to(memory_format=memory_format)
    first = prepared(weight, reordered)
    assert torch.equal(first, weight.permute(0, 2, 3, 1))
    assert prepared(weight, reordered) is first
    alive = weakref.ref(weight)
    del weight
    gc.collect()
    assert alive() is None


def test_a_changed_weight_is_prepared_again():
    weight = torch.randn(4, 6, 3, 3)
    prepared(weight, reordered)
    weight.zero_()
    assert not prepared(weight, reordered).any()


def test_inference_tensors_can_be_prepared():
    with torch.inference_mode():
        weight = torch.randn(4, 6, 3, 3)
        assert prepared(weight, reordered) is prepared(weight, reordered)


def test_recording_launches_nothing():
    sample = Sample("", "conv1x1", (shape(2, 3, 5, 16), shape(20, 16), shape(20)))
    (launch,) = launches("conv1x1", make(sample, torch.float16))
    assert launch.kernel.__name__ == "linear_kernel"
    assert launch.arguments["M"] == 30
    assert launch.arguments["out_ptr"].is_meta
    on_meta = [argument.to("meta") for argument in make(sample, torch.float16)]  # on a GPU its chip would decide
    assert launch.tile == dispatch.PLANS["conv1x1"](*on_meta).tiles[0]


@pytest.fixture(params=["older", "newer"])
def allow_tf32(request):
    """PyTorch has two ways to say it."""

    def allow(tf32):
        if request.param == "older":
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"

    yield allow
    torch.set_float32_matmul_precision("highest")


def test_tf32_only_if_pytorch_may(allow_tf32):
    weight = torch.zeros(1)
    for tf32, precision, name in [(False, "ieee", "fp32"), (True, "tf32", "tf32"), (False, "ieee", "fp32")]:
        allow_tf32(tf32)
        assert (dot_precision(), product_type(weight)) == (precision, name)
        assert product_type(weight.half()) == "fp16"
    assert product_type(weight.double()) == "torch.float64"
    assert launch_module.unsupported_dtype(weight.bfloat16()) is None


@pytest.mark.parametrize("chip", CHIPS)
def test_hopper_waits_for_products_of_computed_operands(chip):
    rows, weight, bias = shape(64, 64), shape(64, 64), shape(64)
    feature_map, kernel, tokens = shape(1, 8, 8, 16), shape(16, 16, 3, 3), shape(1, 16, 16)
    computed = [
        Sample("", "linear", (fine(64, 64), weight, bias)),
        Sample("", "fcu_up", (fine(1, 5, 64), weight, bias)),
    ]
    read = [
        Sample("", "linear", (rows, weight, bias)),
        Sample("", "conv1x1", (feature_map, shape(16, 16), shape(16), 1, True, None, tokens, 2)),
        Sample("", "conv3x3", (feature_map, kernel, shape(16), 1)),
    ]
    with assuming(CHIPS[chip]):
        waits = [launches(s.operation, make(s, torch.float16))[0].arguments["WAIT"] for s in (*computed, *read)]
    assert waits == [chip == 90] * len(computed) + [False] * len(read)
