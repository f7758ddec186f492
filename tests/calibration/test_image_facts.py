"""What calibration says of images that speak against their ranges, and of ranges for other weights."""

import warnings

import pytest
import torch

import conformer_fast as cf
from conformer_fast.calibration.image_facts import FEW, ImageFacts, doubts
from conformer_fast.calibration.noise import quantization_of_noise
from conformer_fast.calibration.resolve import resolve
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer


def noise(count: int = 20, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def said_of(images: torch.Tensor) -> list[str]:
    pictures = ImageFacts()
    for batch in images.split(3):
        pictures.add(batch)
    return list(doubts({"images": len(images), "pictures": pictures.facts}))


PIXELS = noise().clamp(0, 1)
FLAT = torch.linspace(-1, 1, 60).view(20, 3, 1, 1).expand(20, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (noise(), []),
        (noise(channels=4).abs() * 1000, []),  # no pictures: nobody knows what is usual
        (FLAT, ["20 of its 20 images are of one color each"]),
        (torch.cat([FLAT[:9], noise(11)]), []),
        (noise(FEW), []),
        (noise(FEW - 1), [f"it is of {FEW - 1} different images, and some hundred are usual"]),
        (noise(1).repeat(20, 1, 1, 1), ["it is of 1 different image, and some hundred are usual"]),
        (
            noise(0),
            ["0 of its 0 images are of one color each", "it is of 0 different images, and some hundred are usual"],
        ),
        (255 * PIXELS, ["its images have values from 0 to 255, and normalized pictures -2.2 to 2.7"]),
        (3 * noise().clamp(-4, 4), ["its images have values from -12 to 12, and normalized pictures -2.2 to 2.7"]),
        (PIXELS, ["none of its images has a value below 0 (0 to 1), so they are not normalized"]),
    ],
    ids=["noise", "4 channels", "flat", "some flat", "enough", "few", "copies", "none", "255", "wide", "unit"],
)
def test_what_is_seen(images, said):
    assert said_of(images) == said


@pytest.mark.parametrize("facts", [None, 3, {}, {"flat": "x"}, {"flat": 1, "distinct": float("inf"), "extent": [1]}])
def test_an_origin_of_somebody_elses_says_nothing(facts):
    assert not list(doubts({"images": 3, "pictures": facts}))
    assert not list(doubts({}))


def test_it_is_said_where_it_is_measured_and_where_it_is_used(small_model, tmp_path):
    gray, said = torch.zeros(20, 3, 32, 32), "20 of its 20 images are of one color each; it is of 1 different image"
    with pytest.warns(UserWarning, match=said):
        found = cf.calibrate(small_model, [gray], cache=tmp_path)
    with pytest.warns(UserWarning, match=said):  # though no image is read again
        cf.calibrate(small_model, [gray], cache=tmp_path)
    with pytest.warns(UserWarning, match=said):
        resolve(small_model, "int8", cf.Quantization.load(found.save(tmp_path / "q.json")))


def test_other_weights_are_said(small_model, small_config):
    quantization = cf.calibrate(small_model, [noise()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(small_model, "int8", quantization)
    with torch.no_grad():
        small_model.conv_cls_head.bias[0] += 1
    with pytest.warns(UserWarning, match="the int8 quantization may be far off: it was made for other weights"):
        assert resolve(small_model, "int8", quantization) == (quantization, None)


def test_ranges_for_speed_alone_are_no_reason_to_warn():
    config = ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quantization_of_noise(Conformer(config).eval(), "int8", 32)
    assert found.ranges
