"""A model's own mean and std reach its images on every way: Pillow, the extension, uint8 pixels, data sets, bundles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import conformer_fast as cf
from conformer_fast.datasets.batches import DatasetBatches, Pictures
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.preprocessing import cpu
from conformer_fast.preprocessing.cpu import level_values, preprocess_batch

RECIPE = cf.Recipe(size=64, mean=(0.5, 0.25, 0), std=(0.5, 0.125, 1 / 255))


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))


@pytest.fixture(params=[True, False], ids=["extension", "pillow"])
def expected(request, picture, monkeypatch):
    """The picture as RECIPE wants it, (3, 64, 64), computed in float64."""
    if not request.param:
        monkeypatch.setattr(cpu, "_C", None)
    elif cpu._C is None:
        pytest.skip("the extension was not built")
    pixels = preprocess_batch([picture], 64, dtype=torch.uint8)[0].double()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
    return (pixels / 255 - mean) / std


def test_pictures(picture, expected, tmp_path):
    picture.save(tmp_path / "0.png")
    ways = {
        "preprocess": cf.preprocess(picture, 64, recipe=RECIPE),
        "preprocess_batch": preprocess_batch([picture], 64, recipe=RECIPE)[0],
        "load_batch": cf.load_batch([tmp_path / "0.png"], 64, recipe=RECIPE)[0],
        "images_in": cf.images_in(tmp_path, 64, 1, recipe=RECIPE)[0][0],
    }
    for name, found in ways.items():
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(found, ways["preprocess"]), name
    assert (cf.preprocess(picture, 64).double() - expected).abs().max() > 1


def test_data_sets(picture, tmp_path):
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png")
    batches = DatasetBatches(cf.open_dataset(tmp_path), 64, recipe=RECIPE)
    assert torch.equal(batches[0][0], cf.preprocess(picture, 64, recipe=RECIPE))
    usual = DatasetBatches(batches.dataset, 64)
    assert usual.identity != batches.identity
    paths = [tmp_path / "a" / "0.png"]
    assert Pictures(paths, 64).identity != Pictures(paths, 64, recipe=RECIPE).identity
    assert Pictures(paths, 64).identity == Pictures(paths, 64, recipe=cf.Recipe(mean=MEAN, std=STD)).identity


def test_uint8_pixels_of_models_and_bundles(picture, small_model, tmp_path):
    pytest.importorskip("openvino")
    small_model.recipe = replace(RECIPE, labels=tuple("abcdefg"))
    pixels = preprocess_batch([picture], 64, dtype=torch.uint8)
    images = cf.preprocess(picture, 64, recipe=RECIPE)[None]
    fast = cf.compile(small_model, backend="openvino", precision="fp32")
    for model in (fast, cf.compile(small_model, backend="reference"), cf.load(fast.save(tmp_path / "bundle"))):
        assert torch.equal(model.as_input(pixels), images)
        assert (model.side, model.recipe.mean, model.recipe.std) == (64, RECIPE.mean, RECIPE.std)
        assert model.labels == model.recipe.labels == tuple("abcdefg")
        assert torch.equal(model(pixels).logits, model(images).logits)
    (column,) = cf.diff(small_model, pixels, [("reference", "fp32")]).columns
    assert column.report.results == cf.diff(small_model, images, [("reference", "fp32")]).columns[0].report.results


def test_pictures_for_another_model_calibrate_nothing(picture, small_model, tmp_path):
    small_model.recipe = RECIPE
    picture.save(tmp_path / "0.png")
    images = cf.images_in(tmp_path, 64, 1)
    message = r"the pictures are read with mean and std \(\(0.485, .*the model was trained with \(\(0.5, 0.25"
    with pytest.raises(cf.ArgumentError, match=message):
        cf.calibrate(small_model, images)
    with pytest.raises(cf.ArgumentError, match=message):
        cf.compile(small_model, precision="int8", backend="openvino", quantization=images)


def test_what_is_not_of_three_channels_is_refused(picture):
    gray = cf.Recipe(mean=(0.5,), std=(0.5,))
    for use in (lambda: cf.preprocess(picture, recipe=gray), lambda: level_values(torch.float32, gray)):
        with pytest.raises(cf.ArgumentError, match=r"pictures have 3 channels, the recipe's mean \(0.5,\) has 1"):
            use()
