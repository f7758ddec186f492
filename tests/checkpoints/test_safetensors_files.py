"""Safetensors files in shards, as their index names them. Single files are in test_weights and test_reading_unsafe."""

import json
import os

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.errors import CheckpointError

SHARDS = {
    "model-1.safetensors": {"cls_token": torch.ones(1, 1, 4), "conv1.weight": torch.arange(6.0).view(2, 3)},
    "model-2.safetensors": {"bn1.weight": torch.ones(3).half()},
}
WHERE = {name: shard for shard, tensors in SHARDS.items() for name in tensors}


@pytest.fixture
def index(tmp_path):
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    return tmp_path / "model.safetensors.index.json"


def test_shards_are_read_together(index):
    index.write_text(json.dumps({"metadata": {"total_size": 46}, "weight_map": WHERE}))
    read = read_state_dict(index)
    expected = {name: tensor for tensors in SHARDS.values() for name, tensor in tensors.items()}
    assert read.keys() == expected.keys()
    assert all(
        torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"weight_map": WHERE | {"more": "model-1.safetensors"}}, "its files lack more; download or copy them again"),
        ({"weight_map": WHERE | {"more": "model-3.safetensors"}}, "names model-3.safetensors, which is not beside it"),
        ({"weight_map": {"more": "../model-1.safetensors"}}, "no weight_map of file names"),
        ({"weight_map": {"more": "/etc/passwd"}}, "no weight_map of file names"),
        ({"weight_map": {"more": ".."}}, "names .., which is not beside it"),
        ({"weight_map": {"more": 3}}, "no weight_map of file names"),
        ({"weight_map": {"more": {}}}, "no weight_map of file names"),
        ({"weight_map": [3]}, "no weight_map of file names"),
        ({}, "no weight_map of file names"),
        ([], "no weight_map of file names"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(index, content, problem):
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(index)
    assert problem in str(caught.value)


FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", "complex64"]
WHOLE = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]


@pytest.mark.parametrize("name", FLOATS + WHOLE)
def test_every_dtype_is_read(tmp_path, name):
    tensor = torch.arange(6).to(getattr(torch, name))
    save_file({"cls_token": tensor}, tmp_path / "weights.safetensors")
    read = read_state_dict(tmp_path / "weights.safetensors")["cls_token"]
    assert read.dtype == tensor.dtype
    assert read.view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_a_file_that_is_shortened_while_it_is_read_is_no_crash(index, monkeypatch):
    """A mapped file would end the process."""
    path, load = index.with_name("model-1.safetensors"), safetensors.torch.load

    def shorten(content):
        os.truncate(path, 9)
        return load(content)

    monkeypatch.setattr(safetensors.torch, "load", shorten)
    assert torch.equal(read_state_dict(path)["conv1.weight"], SHARDS[path.name]["conv1.weight"])
    assert path.stat().st_size == 9
    with pytest.raises(CheckpointError, match="invalid header length"):
        read_state_dict(path)
