"""Weights are written whole, in the dialect asked for, and never over what is read."""

import errno
import json
import os
import re

import pytest
import safetensors.torch
import torch
from weights_samples import COUNTER, DETECTOR_PARTS, REFERENCE, STATES

from conformer_fast.checkpoints.dialects import recognize
from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.checkpoints.writing import convert, save_weights
from conformer_fast.cli.main import main
from conformer_fast.errors import CheckpointError


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_converting_there_and_back_changes_nothing(tmp_path, dialect):
    source, there, back = tmp_path / "in.pth", tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    other = {"official": "mmpretrain", "mmpretrain": "official"}[dialect]
    state = {name: tensor.half() if "conv_1." in name else tensor for name, tensor in STATES[dialect].items()}
    state = {name: tensor + 9 if name.endswith(COUNTER) else tensor for name, tensor in state.items()}
    torch.save(state, source)
    assert convert(source, there, other).dialect == dialect
    assert convert(there, back, dialect).matched == len(state)
    result = safetensors.torch.load_file(back)
    assert result.keys() == state.keys()
    assert all(torch.equal(result[name], state[name]) for name in state)
    assert all(result[name].dtype == state[name].dtype for name in state)
    assert recognize(safetensors.torch.load_file(there)).dialect == other


def test_converting_keeps_only_the_conformer(tmp_path):
    source, target = tmp_path / "detector.pth", tmp_path / "backbone.safetensors"
    torch.save({"state_dict": STATES["mmdetection"], "meta": {}}, source)
    assert convert(source, target).ignored == len(DETECTOR_PARTS)
    assert read_state_dict(target).keys() == STATES["official-backbone"].keys()


def test_converting_refuses_its_own_input(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    before, link = path.read_bytes(), tmp_path / "link.safetensors"
    link.hardlink_to(path)
    for target in (tmp_path / "." / "weights.safetensors", link):
        with pytest.raises(CheckpointError, match="which is read and would be lost; give another name"):
            convert(path, target, "mmpretrain")
        assert target.read_bytes() == before


def test_converting_refuses_the_shards_that_it_reads(tmp_path):
    index, shard = tmp_path / "model.safetensors.index.json", tmp_path / "model-1.safetensors"
    save_weights(REFERENCE.state_dict(), shard)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(REFERENCE.state_dict(), shard.name)}))
    before = shard.read_bytes()
    with pytest.raises(CheckpointError, match="which is read and would be lost; give another name"):
        convert(index, shard)
    assert main(["export", "--weights", str(index), "--precision", "fp32", "-o", str(shard)]) == 2
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "problem"), [("weights.pth", "ends in .safetensors"), ("no/weights.safetensors", "does not exist")]
)
def test_weights_are_not_written_elsewhere(tmp_path, name, problem):
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        save_weights(REFERENCE.state_dict(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fifo.safetensors", "folder.safetensors", "a\0.safetensors"])
def test_what_is_no_file_is_not_replaced(tmp_path, name):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "source.pth").write_bytes(b"is not read")
    with pytest.raises(CheckpointError, match=r"not a plain file|is a folder|cannot be a file's name"):
        save_weights(REFERENCE.state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"not a plain file|is a folder|cannot be a file's name"):
        convert(tmp_path / "source.pth", tmp_path / name)
    assert (tmp_path / "fifo.safetensors").is_fifo()


def test_mmdetection_names_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="unknown dialect to write 'mmdetection'; choose one of official, mmpretrain"):
        save_weights(REFERENCE.state_dict(), tmp_path / "weights.safetensors", "mmdetection")


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    before = path.read_bytes()

    def breaks(source, target):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.replace", breaks)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: cannot be written (no space left on device)")):
        save_weights(REFERENCE.state_dict(), path, "mmpretrain")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tensors_that_share_memory_can_be_written(tmp_path):
    path = tmp_path / "weights.safetensors"
    shared = torch.arange(12.0).view(3, 4)
    save_weights({"conv_trans_2.a": shared, "conv_trans_2.b": shared.t()}, path)
    assert torch.equal(read_state_dict(path)["conv_trans_2.b"], shared.t())
