"""conformer-fast convert."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_it_writes_weights_that_load(run, run_json, tmp_path, dialect):
    model = cf.create_model("digits", weights="packaged")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "in.pth")
    target = tmp_path / "out.safetensors"
    status, out, err = run("convert", tmp_path / "in.pth", target, "--to", dialect)
    names = cf.read_state_dict(target)
    assert (status, err) == (0, "")
    assert out == f"{target}: {len(names)} tensors, official -> {dialect}, 0 keys left out\n"
    assert ("backbone.cls_token" in names) == (dialect == "mmpretrain")
    loaded = cf.create_model("digits", weights=target)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    status, result, _ = run_json("convert", tmp_path / "in.pth", target, "--to", dialect)
    assert (status, result) == (
        0,
        {"file": str(target), "from": "official", "to": dialect, "tensors": len(names), "left_out": 0},
    )
