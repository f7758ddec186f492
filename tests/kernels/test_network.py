"""The whole fused network through the kernels, against the reference in float64."""

from dataclasses import replace

import lookalikes
import pytest
import torch
from eight_bits import largest_inputs
from kernel_checks import DEVICE, DTYPES

from benchmarks.judge import FLOOR, poisoned_memory
from conformer_fast import create_model
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.model.distance import ALLOWANCE, relative_error
from conformer_fast.model.outputs import LOGITS, SUM, observed_outputs
from conformer_fast.model.precision import FORMATS, tf32_as_asked
from conformer_fast.model.reference import Conformer
from conformer_fast.verification.implementations import Job, run

# Large maps have conv1x1_pair, and test_conv1x1_pair.py makes small ones take it; test_detector.py has the others.
USUAL = set(ops.OPS) - {"conv1x1_pair", "lateral", *ops.MOVES}


def by_pytorch():
    """Inside, PyTorch computes what kernels would, on a GPU too."""
    return dispatch.deciding(lambda call: PYTORCH)


def check_network(config, images, dtype, **kind):
    model = lookalikes.fill(Conformer(config, **kind)).eval().to(DEVICE)
    fused = lower(model)
    names = fused.output_names
    typed = fused.with_outputs(names).in_precision(dtype)
    with torch.inference_mode(), ops.on_kernels():
        with by_pytorch(), tf32_as_asked(dtype):
            eager = typed(images)
        with poisoned_memory(), dispatch.calls() as made:
            ours = typed(images)
        exact = observed_outputs(model.double(), images.double(), names)
    for name, value, same, true in zip(names, ours, eager, exact, strict=True):
        error, bound = relative_error(value, true), ALLOWANCE * relative_error(same, true) + FLOOR[dtype]
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"
    assert not [call.reason for call in made if call.plan.unsupported]
    return {call.operation for call in made}


@pytest.mark.slow
@DTYPES
def test_every_output_of_a_small_network(small_config, dtype):
    used = check_network(small_config, torch.randn(3, 3, 64, 48, device=DEVICE), dtype)
    assert used == USUAL
    assert set(dispatch.PLANS) == set(ops.OPS) - ops.MOVES


def test_odd_sizes_and_large_patches(small_config):
    config = replace(small_config, patch_size=32, num_classes=1000)
    check_network(config, torch.randn(1, 3, 61, 97, device=DEVICE), torch.float16)


def test_a_backbone(small_config):
    check_network(small_config, torch.randn(1, 3, 32, 32, device=DEVICE), torch.float16, features_only=True)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_network_in_8_bits(precision, small_model):
    """All products but two, as after an accuracy gate, beside the same network in PyTorch. In fp32: a value's last bit
    decides on which side of a tie it is, and of float16 those of many values differ."""
    fused, images = lower(small_model.to(DEVICE)), torch.randn(2, 3, 64, 48, device=DEVICE)
    ranges = largest_inputs(fused, [images])
    del ranges["conv_trans_2.trans_block.fc1"], ranges["conv_trans_3.cnn_block.conv3"]
    typed = fused.quantized(Quantization(precision, ranges)).with_outputs(LOGITS)
    with torch.inference_mode(), ops.on_kernels(), poisoned_memory(), dispatch.calls() as made:
        ours = typed(images)
    with torch.inference_mode(), by_pytorch(), tf32_as_asked(torch.float32):
        same, exact = typed(images), fused.double().with_outputs(LOGITS)(images.double())
    for value, other, true in zip(ours, same, exact, strict=True):
        assert relative_error(value, other.double()) <= 0.1 * relative_error(other, true)
    assert not [call.plan.unsupported for call in made if call.plan.unsupported]
    words = [call.plan.problem.split()[1] for call in made]
    assert words.count(f"{precision}-fp32") == len([name for name in fused.quantizable if name in ranges])


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
def test_digits_in_8_bits(precision):
    """A trained model's answers to 4 held-out pictures are those that PyTorch gives in the same 8 bits."""
    pytest.importorskip("sklearn")
    from conformer_fast.datasets.digits import load_digits_split

    split = load_digits_split()
    model, images = create_model("digits", weights="packaged"), split.test_images[:4]
    fused = lower(model)
    quantization = Quantization(precision, largest_inputs(fused, [split.train_images[:128]]))
    with torch.inference_mode():
        (expected,) = fused.in_precision(torch.float16).quantized(quantization).with_outputs([SUM])(images)
    with poisoned_memory():
        found = run("kernels", precision, Job(model, images, (SUM,), (), {precision: quantization})).values[SUM]
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert (found.argmax(-1) == split.test_labels[:4]).all()


def test_operators_are_themselves_again_afterwards(small_model):
    typed, images = lower(small_model).with_outputs(LOGITS), torch.randn(1, 3, 32, 32)
    with dispatch.calls() as made:
        with pytest.raises(KeyError), ops.on_kernels():
            raise KeyError
        typed(images)
    assert made == []


@pytest.mark.parametrize(
    "surroundings",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast(DEVICE, enabled=False)],
    ids=["enable_grad", "no_grad", "inference_mode", "no autocast"],
)
def test_surroundings_change_nothing(surroundings, small_model):
    fused, images = lower(small_model.to(DEVICE)), torch.randn(1, 3, 32, 32, device=DEVICE)
    with surroundings(), ops.on_kernels(), poisoned_memory(), dispatch.calls() as made:
        found = fused(images)
    assert {call.operation for call in made} == USUAL - {"pool"}
    with by_pytorch(), tf32_as_asked(torch.float32):
        for value, same in zip(found, fused(images), strict=True):
            torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-4)
