"""The digits data set's fixed split, the packaged weights' accuracy and the script that made them."""

import hashlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.metadata import KEY
from conformer_fast.checkpoints.reading import read_checkpoint
from conformer_fast.datasets.digits import IMAGE_SIZE, digit_image, load_digits_split, split_indices
from conformer_fast.model.recipe import usual_recipe
from conformer_fast.model.reference import Conformer
from conformer_fast.preprocessing.cpu import preprocess

datasets = pytest.importorskip("sklearn.datasets")

WEIGHTS = Path(str(files("conformer_fast").joinpath("data/digits.safetensors")))
TRAIN_SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


def load_model(path: Path) -> Conformer:
    model = create_model("digits")
    state = load_file(path)
    assert not [name for name in state if name.endswith("num_batches_tracked")]
    model.load_state_dict(state)
    return model


def test_split_never_changes():
    train, test = split_indices(datasets.load_digits().target)
    assert (len(train), len(test)) == (1438, 359)
    assert sorted([*train, *test]) == list(range(1797))
    digest = hashlib.sha256(",".join(str(index) for index in test).encode()).hexdigest()
    assert digest == "ce074941173aae7d94695bb066816f71dbdcfe64dd1e8568ca00515a44632625"


def test_each_class_gives_a_fifth():
    labels = np.array([0] * 10 + [1] * 5 + [0] * 10 + [7] * 15)
    train, test = split_indices(labels)
    assert np.bincount(labels[test], minlength=8).tolist() == [4, 1, 0, 0, 0, 0, 0, 3]
    assert np.intersect1d(train, test).size == 0


def test_tensors(split):
    data = datasets.load_digits()
    train, test = split_indices(data.target)
    assert split.train_images.shape == (1438, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert split.test_images.shape == (359, 3, IMAGE_SIZE, IMAGE_SIZE)
    for images, labels, indices in ((*split[:2], train), (*split[2:], test)):
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.tolist() == data.target[indices].tolist()
        for row in (0, 100, -1):
            assert torch.equal(images[row], preprocess(digit_image(data.images[indices[row]]), IMAGE_SIZE))


def test_digit_is_white_on_black():
    pixels = np.zeros((8, 8))
    pixels[0, :3] = 4, 12, 16
    image = digit_image(pixels)
    assert (image.size, image.mode) == ((8, 8), "RGB")
    assert [image.getpixel((x, 0)) for x in range(4)] == [(64,) * 3, (191,) * 3, (255,) * 3, (0,) * 3]


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "conformer-fast\[digits\]"'):
        load_digits_split()


def test_packaged_weights_are_small_and_single_precision():
    assert WEIGHTS.stat().st_size <= 2_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.float32}


def test_packaged_weights_recognize_held_out_digits(split):
    with torch.inference_mode():
        output = load_model(WEIGHTS)(split.test_images)
    with safe_open(WEIGHTS, "pt") as file:
        recorded = file.metadata()
    scores = {"conv": output.conv_logits, "trans": output.trans_logits, "sum": output.logits}
    for name, score in scores.items():
        accuracy = (score.argmax(1) == split.test_labels).double().mean().item()
        assert accuracy >= 0.98, name
        assert accuracy == pytest.approx(float(recorded[f"accuracy_{name}"]), abs=1.5 / 359), (
            name
        )  # one close call may turn


@pytest.mark.slow
def test_training_script_writes_a_loadable_file(tmp_path):
    path = tmp_path / "trained.safetensors"
    command = [sys.executable, TRAIN_SCRIPT, "--epochs", "1", "--limit", "64", "--seed", "3", "--output", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "held-out accuracy: conv " in done.stdout
    trained, untrained = load_model(path), create_model("digits")
    assert not torch.equal(trained.conv_cls_head.bias, untrained.conv_cls_head.bias)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"accuracy_conv", "accuracy_trans", "accuracy_sum", "seed", "epochs", "format", KEY}
    assert read_checkpoint(path).recipe == usual_recipe(trained.config)
    assert (metadata["seed"], metadata["epochs"]) == ("3", "1")
