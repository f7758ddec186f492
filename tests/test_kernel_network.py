"""The whole fused network through the kernels, against the reference in float64."""

from dataclasses import replace

import lookalikes
import pytest
import torch
from kernel_checks import ALLOWANCE, DEVICE, DTYPES, FLOOR, error, poisoned_memory

from conformer_fast import ops
from conformer_fast.cuda_graph import tf32_as_asked
from conformer_fast.fuse import LOGITS, fuse
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.model import Conformer
from conformer_fast.outputs import observed_outputs


def check_network(config, images, dtype, **kind):
    model = lookalikes.fill(Conformer(config, **kind)).eval().to(DEVICE)
    fused = fuse(model)
    names = fused.output_names
    typed = fused.with_outputs(names).in_precision(dtype)
    with torch.inference_mode(), ops.on_kernels():
        with dispatch.deciding(lambda call: PYTORCH), tf32_as_asked(dtype):
            eager = typed(images)
        with poisoned_memory(), dispatch.calls() as made:
            ours = typed(images)
        exact = observed_outputs(model.double(), images.double(), names)
    for name, value, same, true in zip(names, ours, eager, exact, strict=True):
        bound = ALLOWANCE * error(same, true) + FLOOR[dtype]
        assert error(value, true) <= bound, f"{name}: {error(value, true):.2e} > {bound:.2e}"
    assert not [call.reason for call in made if call.plan.unsupported]
    return {call.operation for call in made}


@DTYPES
def test_every_output_of_a_small_network(small_config, dtype):
    used = check_network(small_config, torch.randn(3, 3, 64, 48, device=DEVICE), dtype)
    assert used == set(dispatch.PLANS) == set(ops.OPS)


def test_odd_sizes_and_large_patches(small_config):
    config = replace(small_config, patch_size=32, num_classes=1000)
    check_network(config, torch.randn(1, 3, 61, 97, device=DEVICE), torch.float16)


def test_a_backbone(small_config):
    check_network(small_config, torch.randn(1, 3, 32, 32, device=DEVICE), torch.float16, features_only=True)


def test_operators_are_themselves_again_afterwards(small_model):
    typed, images = fuse(small_model).with_outputs(LOGITS), torch.randn(1, 3, 32, 32)
    with dispatch.calls() as made:
        with pytest.raises(KeyError), ops.on_kernels():
            raise KeyError
        typed(images)
    assert made == []
