"""Pictures of two-digit numbers: the same for the same seed, held out by digit, in folders that can be evaluated."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conformer_fast.checkpoints.reading import read_checkpoint, read_state_dict
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.datasets.digit_pairs import CONFIG, HEIGHT, IMAGE_SIZE, WIDTH, DigitPairs, main, write_folder
from conformer_fast.datasets.digits import load_pixels, split_indices

pytest.importorskip("sklearn")

TRAIN_SCRIPT = Path(__file__).parents[2] / "examples" / "train_digit_pairs.py"


def test_pictures():
    pictures, numbers = DigitPairs("test", 0).draw(64)
    assert (pictures.shape, pictures.dtype) == ((64, 3, HEIGHT, WIDTH), torch.uint8)
    assert len(numbers.unique()) > 30
    assert 0 <= int(numbers.min()) <= int(numbers.max()) <= 99
    assert pictures.float().std((1, 2, 3)).min() > 10  # there is something on each


def test_the_same_seed_draws_the_same():
    (one, first), (other, second) = (DigitPairs("train", 3).draw(8) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(first, second)
    assert not torch.equal(DigitPairs("train", 4).draw(8)[0], one)


def test_the_ink_is_the_digits():
    """The number is that of the digits drawn, the tens on the left."""
    pairs = DigitPairs("test", 0)
    _, labels = load_pixels()
    held_out = labels[split_indices(labels)[1]]
    assert np.array_equal(pairs._labels.numpy(), held_out)
    which = torch.arange(20)
    left, right = pairs._ink(which, -1), pairs._ink(which, 1)
    columns = torch.arange(WIDTH).float()
    centers = [(ink.sum((1, 2)) * columns).sum(1) / ink.sum((1, 2, 3)) for ink in (left, right)]
    assert (centers[0] < WIDTH / 2).all()
    assert (centers[1] > WIDTH / 2).all()


def test_folder(tmp_path):
    main([str(tmp_path / "numbers"), "--count", "30", "--seed", "5"])
    pictures, numbers = DigitPairs("test", 5).draw(30)
    data = open_dataset(tmp_path / "numbers", num_classes=CONFIG.num_classes)
    assert len(data) == 30
    for picture, label in zip(data.pictures, data.labels, strict=True):
        index = int(Path(picture.name).stem)
        assert label == numbers[index]
        stored = np.asarray(Image.open(tmp_path / "numbers" / picture.name))
        assert np.array_equal(stored, pictures[index].permute(1, 2, 0))
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        write_folder(tmp_path / "numbers", "test", 1, 0)


@pytest.mark.slow
def test_training_script(tmp_path):
    out = tmp_path / "weights.safetensors"
    command = [sys.executable, TRAIN_SCRIPT, "--steps", "1", "--batch", "4", "--test-pictures", "4", "--output", out]
    subprocess.run(command, check=True, timeout=500, capture_output=True)
    state = read_state_dict(out)
    assert state["conv1.weight"].dtype == torch.float16
    recipe = read_checkpoint(out).recipe
    assert (recipe.size, recipe.num_heads, recipe.labels[7]) == (IMAGE_SIZE, CONFIG.num_heads, "07")
    assert IMAGE_SIZE % CONFIG.patch_size == 0
