"""Detectors on a GPU, by our kernels: the reference's objects, wherever the images come from."""

from __future__ import annotations

import pytest
from detector_samples import SMALL, alike, image, small, smooth, write_weights
from kernel_checks import DEVICE
from PIL import Image

import conformer_fast as cf
from conformer_fast.engines.detector import EngineNetworks
from conformer_fast.kernels.regions import read_regions
from conformer_fast.kernels.suppress import nms
from conformer_fast.model.detector.detect import on_cpu

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")


@pytest.fixture(scope="module")
def fast() -> cf.FastDetector:
    return cf.compile(small(), backend="triton", precision="fp32")


@pytest.mark.parametrize("size", [(96, 160), (250, 200)], ids=str)
def test_the_same_as_the_reference(fast, size):
    images, sizes = image(*size)
    (expected,) = small()(images, sizes)
    assert len(expected.boxes) >= 5
    for found in fast(images.expand(2, -1, -1, -1).to(DEVICE), sizes * 2):
        assert all(part.is_cuda for part in found)
        alike(on_cpu(found), expected)


def test_it_runs_our_kernels(fast):
    assert isinstance(fast.networks, EngineNetworks)
    assert fast.networks.operators == (nms, read_regions)
    assert fast.settings.device.startswith("cuda")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
def test_every_network_is_within_its_bound(precision):
    images, _ = image(96, 160)
    quantization = [images] if precision == "int8" else None
    fast = cf.compile(small(), backend="triton", precision=precision, quantization=quantization)
    assert fast.verify(images).within


def test_pictures(fast, tmp_path):
    Image.fromarray(smooth(60, 90)).save(tmp_path / "a.png")
    detector = cf.create_detector(weights=write_weights(tmp_path / "d.safetensors", size=96))
    (found,) = cf.compile(detector, backend="triton", precision="fp32").predict([tmp_path / "a.png"])
    assert not any(part.is_cuda for part in found.detections)
    (expected,) = cf.compile(detector, backend="reference").predict([tmp_path / "a.png"])
    alike(found.detections, expected.detections)
    assert found.objects(0.4)


def test_a_bundle(fast, tmp_path):
    images, sizes = image(96, 160)
    loaded = cf.load(fast.save(tmp_path / "bundle"))
    assert loaded.networks.operators == (nms, read_regions)
    (found,), (expected,) = loaded(images.to(DEVICE), sizes), fast(images.to(DEVICE), sizes)
    alike(on_cpu(found), on_cpu(expected), atol=0)


def test_images_on_another_device(fast):
    images, sizes = image(64, 64)
    with pytest.raises(cf.ArgumentError, match="compiled for cuda:0, the images are on cpu"):
        fast(images, sizes)
    assert fast.config == SMALL
