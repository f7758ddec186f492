"""A detector's networks rewritten for inference, against the reference's parts in float64, and as ONNX graphs."""

from __future__ import annotations

import pytest
import torch
from detector_samples import SMALL, filled, image

from conformer_fast.inference.detector import EVEN, split_regions
from conformer_fast.inference.lower import lower
from conformer_fast.model.distance import relative_error

DOUBLE = torch.float64
EXACT = 1e-9


@pytest.fixture(scope="module")
def detector():
    return filled(SMALL, DOUBLE)


@pytest.mark.parametrize("size", [(96, 160), (32, 32), (224, 64)], ids=str)
def test_the_proposer(detector, size):
    images = image(*size, DOUBLE)[0].expand(2, -1, -1, -1)
    expected = detector.propose(images)
    network = lower(detector.proposer)
    found = dict(zip(network.outputs, network(images), strict=True))
    for level, (feature_map, values) in enumerate(zip(*expected, strict=True)):
        for value, name in ((feature_map, f"{level}.pixels"), (values, f"regions.{level}.pixels")):
            ours = found[name].permute(0, 3, 1, 2)
            assert ours.shape == value.shape
            assert relative_error(ours, value) < EXACT
    (alone,) = network.with_outputs(["regions.2.pixels"])(images)
    assert torch.equal(alone, found["regions.2.pixels"])


def test_the_heads(detector):
    features = torch.randn(30, 32, 7, 7, dtype=DOUBLE)
    (found,) = lower(detector.roi_head.bbox_head)(features.permute(0, 2, 3, 1).flatten(1)[None, None])
    logits, deltas = detector.boxes(features)
    assert found.shape[3] % EVEN == 0
    assert not found[..., logits.shape[1] + deltas.shape[1] :].any()
    for value, expected in zip(split_regions(found[0, 0], logits.shape[1] - 1), (logits, deltas), strict=True):
        torch.testing.assert_close(value, expected, rtol=EXACT, atol=EXACT)
    features = torch.randn(3, 32, 14, 14, dtype=DOUBLE)
    (found,) = lower(detector.roi_head.mask_head)(features.permute(0, 2, 3, 1))
    torch.testing.assert_close(found, detector.masks(features), rtol=EXACT, atol=EXACT)


def test_what_leaves_a_network_stays_out_of_8_bits(detector):
    for part, last in (
        (detector.proposer, "regions"),
        (detector.roi_head.bbox_head, "regions"),
        (detector.roi_head.mask_head, "masks"),
    ):
        network = lower(part)
        products = {name for name, _ in network.named_modules() if name.split(".")[-1] != "backbone"}
        assert last in products
        assert last not in network.quantizable
        assert network.quantizable
    assert "backbone.conv_trans_3.trans_block.qkv" in lower(detector.proposer).quantizable


def test_graphs_compute_the_same(detector):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from conformer_fast.engines.onnx.export import onnx_from_model

    small = filled(SMALL)
    inputs = (
        (small.proposer, image(64, 96)[0]),
        (small.roi_head.bbox_head, torch.randn(1, 1, 9, 32 * 49)),
        (small.roi_head.mask_head, torch.randn(2, 14, 14, 32)),
    )
    for part, images in inputs:
        network = lower(part)
        expected = network(images)
        for products in ("conv", "matmul"):
            graph = onnx_from_model(network, products=products)
            session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
            for value, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
                assert relative_error(torch.from_numpy(value), wanted) < 1e-4
