"""The kernel that preprocesses: equal to the CPU to the last bit, before normalization and after."""

import itertools
import random
import sys

import numpy as np
import pytest
import torch
import triton
from kernel_checks import DEVICE
from PIL import Image

from conformer_fast.errors import ImageError
from conformer_fast.kernels import preprocess
from conformer_fast.model.recipe import Recipe
from conformer_fast.preprocessing import cpu
from conformer_fast.preprocessing.cpu import cut_of, image_path, preprocess_batch
from conformer_fast.preprocessing.gpu import preprocess_on_gpu

DTYPES = pytest.mark.parametrize("dtype", cpu.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """0 and 255 alone where the seed is odd, so that the filter overshoots."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 2 if seed % 2 else 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels * 255 if seed % 2 else levels)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """torch.empty is filled inside the launcher: an element that is not written, or read too early, shows."""
    empty = torch.empty

    def filled(*args, **kwargs):
        result = empty(*args, **kwargs)
        return result.fill_(123 if result.dtype == torch.uint8 else torch.nan)

    monkeypatch.setattr(torch, "empty", filled)


def check(images, size, dtype=torch.uint8):
    ours = preprocess_on_gpu(images, size, device=DEVICE, dtype=dtype)
    assert ours.dtype == dtype
    assert ours.shape == (len(images), 3, size, size)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours.cpu(), preprocess_batch(images, size, dtype=dtype))


@DTYPES
def test_a_ragged_batch(dtype):
    """Landscape, portrait, enlarged, far from square, and a picture whose passes may run in the other order."""
    sizes = [(61, 43), (43, 61), (9, 7), (130, 5), (1, 1), (20, 90), (36, 36)]
    check([noise(*size, seed) for seed, size in enumerate(sizes)], 32, dtype)


def test_a_models_own_normalization():
    recipe = Recipe(mean=(0.5, 0.25, 0), std=(0.5, 0.125, 1 / 255))
    images = [noise(20, 30), noise(9, 9, 1)]
    ours = preprocess_on_gpu(images, 16, device=DEVICE, recipe=recipe)
    assert torch.equal(ours.cpu(), preprocess_batch(images, 16, recipe=recipe))
    assert not torch.equal(ours.cpu(), preprocess_batch(images, 16))


def test_random_sizes():
    generator = random.Random(0)
    for seed in range(8):
        images = [noise(generator.randint(1, 120), generator.randint(20, 90), seed + i) for i in range(3)]
        check(images, generator.randint(1, 40))


@pytest.mark.parametrize("size", [1, 2, 33])
def test_extremes(size):
    check([noise(1, 60), noise(60, 1), noise(2, 3), noise(700, 30), noise(30, 700, 1)], size)


def test_a_photo():
    check([noise(250, 188)], 112)


def test_other_modes_become_rgb_first():
    check([noise(40, 30).convert(mode) for mode in ("L", "P", "RGBA", "CMYK", "1")], 16)


@pytest.mark.parametrize("vertical_first", [False, True])
def test_both_orders_of_the_passes(monkeypatch, vertical_first):
    if image_path().startswith("Pillow"):
        pytest.skip("Pillow alone takes the order it wants")
    monkeypatch.setattr(cpu, "cut_of", lambda *given: cpu.Cut(*cut_of(*given)[:-1], vertical_first))
    check([noise(61, 43), noise(20, 90, 1), noise(7, 9, 3)], 24)


@pytest.fixture
def horizontal(monkeypatch):
    """Pictures, not higher than wide, and a size -> what the kernel is given for the pass along each picture's lines:
    of each resized pixel the first source pixel, (size,), and the weights from there on, (taps, size). Nothing runs."""
    given = []

    def noted(pixels, first, second, tables, *rest):
        given.append((first, tables.cpu().numpy()))
        return torch.empty((len(second), second[0].rows, second[0].columns, 3), dtype=torch.uint8)

    def read(images, size):
        preprocess_on_gpu(images, size, device=DEVICE)
        first, tables = given[-1]
        for one in first:
            assert not one.vertical
            starts, weights = np.split(tables[one.table : one.table + size * (1 + one.taps)], [size])
            yield starts, weights.reshape(one.taps, size)

    monkeypatch.setattr(preprocess, "launch_preprocess", noted)
    return read


def test_weights_are_those_of_pillow(horizontal):
    """One white pixel in black, moved: Pillow's output is that pixel's rounded weight, to 8 bits."""
    for length, size in itertools.product((5, 16, 37), (4, 6, 13, 20, 44)):
        new_length = int(256 / 224 * size)
        left = round((new_length - size) / 2)
        ((starts, weights),) = horizontal([noise(length, length)], size)
        for position in range(length):
            line = np.zeros((1, length, 3), np.uint8)
            line[0, position] = 255
            resized = np.asarray(Image.fromarray(line).resize((new_length, 1), Image.Resampling.BICUBIC))[0, :, 0]
            place = position - starts
            taken = weights[np.clip(place, 0, len(weights) - 1), np.arange(size)].astype(np.int64)
            taken = np.where((place >= 0) & (place < len(weights)), taken, 0)
            levels = np.clip((255 * taken + (1 << 21)) >> 22, 0, 255)
            assert np.array_equal(levels, resized[left : left + size])


def test_errors():
    image = noise(8, 8)
    with pytest.raises(ValueError, match="no pictures"):
        preprocess_on_gpu([], device=DEVICE)
    with pytest.raises(ValueError, match="size must be a whole number, at least 1, got 0"):
        preprocess_on_gpu([image], 0, device=DEVICE)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        preprocess_on_gpu([image], 8, device=DEVICE, dtype=torch.float64)
    with pytest.raises(ImageError, match="picture 1 of 2: mode F"):
        preprocess_on_gpu([image, Image.new("F", (5, 5))], 8, device=DEVICE)


def test_triton_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"pip install \"conformer-fast\[triton\]\""):
        preprocess_on_gpu([noise(8, 8)], 8)


def test_another_device_is_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="needs a CUDA device, got cpu; preprocess_batch runs on the CPU"):
        preprocess_on_gpu([noise(8, 8)], 8, device="cpu")


def test_tables_of_more_sizes_than_are_remembered(horizontal):
    """The cache of axes holds 256; those that left it keep their tables."""
    images = [Image.new("RGB", (width, 40)) for width in range(40, 440)]
    for image, (starts, weights) in zip(images, list(horizontal(images, 32)), strict=True):
        ((expected_starts, expected_weights),) = horizontal([image], 32)
        assert np.array_equal(starts, expected_starts)
        assert np.array_equal(weights, expected_weights)
