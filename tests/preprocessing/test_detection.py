"""Pictures as a detector's images. tests/model/detector/test_against_mmdet.py compares with OpenCV where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detector_samples import smooth
from PIL import Image

import conformer_fast as cf
from conformer_fast.preprocessing.detection import fitted_size


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((640, 480), (800, 1067)),
        ((480, 640), (1067, 800)),
        ((1920, 1080), (756, 1344)),
        ((500, 375), (800, 1067)),
        ((1344, 800), (800, 1344)),
        ((1, 1), (800, 800)),
    ],
)
def test_sizes(picture, size):
    width, height = picture
    assert fitted_size(width, height) == (*size, height, width)


def test_by_fixed_point_arithmetic():
    """A line of two pixels, 10 and 250, resized to five: OpenCV's numbers."""
    row = Image.fromarray(np.array([[[10] * 3, [250] * 3]], np.uint8))
    images, (size,) = cf.fit_pictures([row], edges=(5, 3))
    assert size == (3, 5, 1, 2)
    mean, std = torch.tensor(cf.Recipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).normalization)
    levels = (images[0, :, :3, :5] * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    assert levels.round().int()[0].tolist() == [[10, 34, 130, 226, 250]] * 3


def test_a_batch_is_padded_with_zeros():
    pictures = [Image.fromarray(smooth(40, 60)), Image.fromarray(smooth(70, 50))]
    images, sizes = cf.fit_pictures(pictures, edges=(96, 64))
    assert images.shape == (2, 3, 96, 96)
    for image, size, picture in zip(images, sizes, pictures, strict=True):
        assert (size.original_height, size.original_width) == picture.size[::-1]
        assert not image[:, size.height :].any()
        assert not image[:, :, size.width :].any()
        (alone,), _ = cf.fit_pictures([picture], edges=(96, 64))
        assert torch.equal(alone[:, : size.height, : size.width], image[:, : size.height, : size.width])


def test_the_same_size_changes_no_level():
    pixels = smooth(64, 96)
    recipe = cf.Recipe(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, _ = cf.fit_pictures([Image.fromarray(pixels)], recipe=recipe, edges=(96, 64))
    assert np.array_equal((images[0].permute(1, 2, 0) * 255).round().numpy(), pixels)


def test_the_recipe_may_have_another_size():
    images, (size,) = cf.fit_pictures([Image.fromarray(smooth(40, 80))], recipe=cf.Recipe(size=128))
    assert images.shape == (1, 3, 64, 128)
    assert size == (64, 128, 40, 80)


def test_refused():
    picture = Image.new("RGB", (20, 10))
    with pytest.raises(cf.ArgumentError, match="no pictures"):
        cf.fit_pictures([])
    for edges in ((0, 5), (5,), (1.5, 2), (10**9, 5)):
        with pytest.raises(cf.ArgumentError, match="edges must be two whole numbers"):
            cf.fit_pictures([picture], edges=edges)
    with pytest.raises(cf.ImageError, match="nothing would be left"):
        cf.fit_pictures([Image.new("RGB", (20000, 2))])
    with pytest.raises(cf.ArgumentError, match="pictures have 3 channels"):
        cf.fit_pictures([picture], recipe=cf.Recipe(mean=(0.5,), std=(0.5,)))
