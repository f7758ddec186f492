"""Two 1x1 convolutions as one kernel, alone and in the network."""

import pytest
import torch
from kernel_checks import DEVICE, Sample, check, layouts, make, shape

from benchmarks.judge import poisoned_memory
from conformer_fast.inference import network as network_module
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import conv1x1_pair, dispatch
from conformer_fast.kernels.chips import CHIPS, assuming
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF
from conformer_fast.model.outputs import LOGITS

SMALL = Tile(16, 16, 0, 4, 2)  # several steps and programs, and ragged ends, on small sizes
PAIR = "conv1x1_pair"


def sample(B, h, w, S, K, N, L, tokens=True):
    """A map of h x w tokens, to which their entries are added."""
    H, W = h * S, w * S
    arguments = shape(B, H, W, K), shape(N, K), shape(N), shape(B, H, W, N), shape(L, N), shape(L)
    label = f"B{B}-{H}x{W}-K{K}-N{N}-L{L}" + f"-tokens{S}" * tokens
    return Sample(label, PAIR, (*arguments, *((shape(B, h * w, L), S) if tokens else ())))


SAMPLES = [
    sample(3, 2, 3, 4, 24, 33, 20),
    sample(1, 3, 1, 2, 40, 100, 16),
    sample(3, 1, 1, 1, 16, 16, 16),
    sample(1, 1, 1, 1, 6, 10, 6, tokens=False),
    sample(3, 5, 7, 1, 96, 70, 33, tokens=False),
    sample(1, 4, 5, 1, 150, 64, 130, tokens=False),
]
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=str)
TYPES = pytest.mark.parametrize("dtype", conv1x1_pair.TYPES, ids=["fp16", "bf16"])


@EACH
@TYPES
def test_error(sample, dtype):
    check(PAIR, make(sample, dtype))


@EACH
@TYPES
def test_small_tiles(sample, dtype):
    check(PAIR, make(sample, dtype), SMALL)


@EACH
@pytest.mark.parametrize("chip", CHIPS)
def test_every_tile(sample, chip):
    with assuming(CHIPS[chip]):
        arguments = make(sample, torch.float16)
        tiles = dispatch.PLANS[PAIR](*arguments).tiles
        assert tiles
        for tile in tiles:
            check(PAIR, arguments, tile)


@EACH
def test_any_strides(sample):
    for arguments in layouts(make(sample, torch.float16)):
        check(PAIR, arguments, SMALL)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
def test_relu_of_nan_is_nan():
    arguments = make(SAMPLES[0], torch.float16)
    arguments[0].view(-1)[-1] = torch.nan
    ours, expected = dispatch.PLANS[PAIR](*arguments).launch(SMALL), CF.conv1x1_pair(*arguments)
    for value, same in zip(ours, expected, strict=True):
        torch.testing.assert_close(value.isnan(), same.isnan())
        assert value.isnan().any()


def test_what_it_cannot_take_is_named():
    def plan(dtype, K=16, next_dtype=None, residual=None, chip=90):
        with torch.device("meta"), assuming(CHIPS[chip]):
            x, out = torch.empty(1, 4, 4, K, dtype=dtype), torch.empty(1, 4, 4, 64, dtype=residual or dtype)
            weight, bias = torch.empty(64, K, dtype=dtype), torch.empty(64, dtype=dtype)
            following = torch.empty(16, 64, dtype=next_dtype or dtype), torch.empty(16, dtype=dtype)
            return dispatch.PLANS[PAIR](x, weight, bias, out, *following).unsupported

    assert plan(torch.float16) is None
    assert "torch.float32" in plan(torch.float32)
    assert "torch.bfloat16" in plan(torch.float16, next_dtype=torch.bfloat16)
    assert "torch.float16 and torch.float32" in plan(torch.float16, residual=torch.float32)
    assert plan(torch.float16, K=256) is None
    for K, chip in ((256, 80), (384, 90)):
        assert "does not fit" in plan(torch.float16, K=K, chip=chip)


def small_network(small_model, monkeypatch, dtype):
    """Small batches are not divided, and all pairs that can be are."""
    monkeypatch.setattr(network_module, "TWO_STREAMS", 0)
    monkeypatch.setattr(
        conv1x1_pair, "pays", lambda x, weight, following: weight.dtype == following.dtype in conv1x1_pair.TYPES
    )
    return lower(small_model.to(DEVICE)).in_precision(dtype)


@torch.inference_mode()
def test_in_a_network(small_model, monkeypatch):
    """The same operations as apart, in another order: by PyTorch each result of every block is bit-equal."""
    fused = small_network(small_model, monkeypatch, torch.float16)
    fused = fused.with_outputs(fused.output_names)
    images = torch.randn(2, 3, 64, 48, dtype=torch.float16, device=DEVICE)
    with monkeypatch.context() as patch, ops.on_kernels(), dispatch.deciding(lambda call: dispatch.PYTORCH):
        patch.setattr(conv1x1_pair, "pays", lambda *arguments: False)
        apart = fused(images)
    with ops.on_kernels(), poisoned_memory(), dispatch.calls() as made:
        ours = fused(images)
    coupled = fused.config.depth - 1
    names = [call.operation for call in made]
    assert names.count(PAIR) == 2 * coupled
    with ops.on_kernels(), dispatch.deciding(lambda call: dispatch.PYTORCH):
        by_pytorch = fused(images)
    for value, same in zip(ours, by_pytorch, strict=True):
        torch.testing.assert_close(value, same, rtol=2e-2, atol=2e-2)
    for value, same in zip(by_pytorch, apart, strict=True):
        assert torch.equal(value, same)


@torch.inference_mode()
def test_8_bits_are_no_pair(small_model, monkeypatch):
    """A pair's neighbors may be in 8 bits: then its parts are apart, since it takes and makes no such numbers."""
    fused, images = small_network(small_model, monkeypatch, torch.float16), torch.randn(2, 3, 64, 48)
    images = images.half().to(DEVICE)
    inside = "conv_trans_2.cnn_block.conv3", "conv_trans_2.fusion_block.conv1", "conv_trans_2.fusion_block.conv2"
    counts = []
    for names in ((), *zip(inside, strict=True), ("conv_trans_2.trans_block.fc1",)):
        quantization = Quantization("int8", dict.fromkeys(names, 3.0))
        typed = fused.quantized(quantization).with_outputs(LOGITS)
        made = []

        def by_pytorch(call, made=made):
            made.append(call.operation)
            return dispatch.PYTORCH

        with ops.on_kernels(), dispatch.deciding(by_pytorch):
            paired = typed(images)
            counts.append(made.count(PAIR))
            with monkeypatch.context() as patch:
                patch.setattr(conv1x1_pair, "pays", lambda *arguments: False)
                apart = typed(images)
        for value, same in zip(paired, apart, strict=True):
            assert torch.equal(value, same)
    whole, *divided, beside = counts
    assert divided == [whole - 1] * 3
    assert beside == whole
