"""A model with somebody's weights in it."""

import copy
from dataclasses import replace

import pytest
import torch
from weights_samples import CONFIG, COUNTER, REFERENCE, assert_loaded

from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.writing import save_weights
from conformer_fast.errors import CheckpointError


def test_create_model_with_weights_draws_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    state = torch.get_rng_state()
    model = create_model(CONFIG, weights=path)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.tensor(0) if name.endswith(COUNTER) else REFERENCE.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images).logits, copy.deepcopy(REFERENCE).eval()(images).logits)


def test_create_model_takes_the_files_class_count(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path, "mmpretrain")
    model = create_model(replace(CONFIG, num_classes=10), weights=str(path))
    assert model.config == CONFIG
    assert_loaded(model)
    with pytest.raises(CheckpointError, match="for 7 classes, but the model has 10"):
        create_model(CONFIG, weights=str(path), num_classes=10)
