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


def test_it_writes_what_the_file_is_to_say(run, run_json, tmp_path):
    model = cf.create_model("digits", weights="packaged")
    torch.save(model.state_dict(), tmp_path / "in.pth")
    names = [f"digit {number}" for number in range(10)]
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    target, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    options = ("--size", 64, "--num-heads", 4, "--labels", tmp_path / "names.txt", "--mean=.5,.5,.5", "--std=.5,.5,.5")
    assert run("convert", tmp_path / "in.pth", target, *options)[0] == 0
    expected = cf.Recipe(64, 4, names, (0.5,) * 3, (0.5,) * 3)
    assert cf.create_model("digits", weights=target).recipe == expected
    assert run("convert", target, again, "--size", 96)[0] == 0
    assert cf.create_model("digits", weights=again).recipe == cf.Recipe(size=96).over(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "0.5,0.5,0.5"], "mean and std have a number a channel each"),
        (["--mean", "123.7,116.3,103.5", "--std", "58,57,57"], "divide those of pixels from 0 to 255 by 255"),
        (["--mean", "gray"], "must be numbers between commas, such as 0.5,0.5,0.5; got 'gray'"),
        (["--num-heads", "3"], "embed_dim 64 is not a multiple of num_heads 3"),
        (["--size", "8"], "images of 8 pixels are smaller than one patch of 16"),
    ],
)
def test_what_cannot_be_true_writes_nothing(run, tmp_path, options, message):
    torch.save(cf.create_model("digits").state_dict(), tmp_path / "in.pth")
    status, _, err = run("convert", tmp_path / "in.pth", tmp_path / "out.safetensors", *options)
    assert status == 2
    assert message in err
    assert not (tmp_path / "out.safetensors").exists()
