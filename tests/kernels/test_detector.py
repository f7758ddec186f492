"""A detector's networks on the kernels, beside the same in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detector_samples import SMALL, alike, filled, image
from kernel_checks import DEVICE

from benchmarks.judge import FLOOR, poisoned_memory
from conformer_fast.engines.cuda import between_networks
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.regions import read_regions
from conformer_fast.kernels.suppress import nms
from conformer_fast.model.detector.detect import PYTORCH, Operators, on_cpu
from conformer_fast.model.distance import ALLOWANCE, relative_error

HALF = torch.float16


@pytest.mark.slow
def test_the_networks():
    detector = filled(SMALL)
    head = detector.roi_head
    cases = (
        (detector.proposer, image(32, 64)[0], {"lateral", "conv3x3", "conv1x1"}),
        (head.bbox_head, torch.randn(1, 1, 9, 32 * 49), {"conv1x1"}),
        (head.mask_head, torch.randn(2, 14, 14, 32), {"conv3x3", "conv1x1"}),
    )
    for part, images, operations in cases:
        images = images if part is detector.proposer else images.half()  # heads read what maps are in
        exact = lower(part).double()(images.double())
        typed, images = lower(part, precision="fp16").to(DEVICE), images.to(DEVICE)
        same = typed(images)
        with torch.inference_mode(), ops.on_kernels(), poisoned_memory(), dispatch.calls() as made:
            ours = typed(images)
        for value, beside, true in zip(ours, same, exact, strict=True):
            bound = ALLOWANCE * relative_error(beside, true) + FLOOR[HALF]
            assert relative_error(value, true) <= bound
        assert operations <= {call.operation for call in made}
        assert not [call.reason for call in made if call.plan.unsupported]


@pytest.mark.slow
def test_between_the_networks():
    """What a GPU takes there is our kernels, and finds the same objects."""
    config = replace(SMALL, proposals=20, detections=8)
    detector = filled(config).to(DEVICE)
    images, sizes = image(64, 64)
    (expected,) = filled(config)(images, sizes)
    detector.operators = between_networks("cuda:0")
    assert detector.operators == Operators(nms, read_regions)
    assert between_networks("cpu") is PYTORCH
    with torch.inference_mode():
        (found,) = detector(images.to(DEVICE), sizes)
    assert len(expected.boxes) > 5
    alike(on_cpu(found), expected)
