"""Hostile and damaged files: one clear CheckpointError each, and nothing in the file is run."""

import builtins
import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from conformer_fast.bundles.manifest import MANIFEST
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.dialects import recognize
from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.checkpoints.weights import load_weights
from conformer_fast.checkpoints.writing import save_weights
from conformer_fast.errors import CheckpointError
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

STATE = {"conv_trans_2.weight": torch.arange(6.0).view(2, 3), "cls_token": torch.ones(1, 1, 4)}


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": lambda marker: Call(os.system, f"touch '{marker}'"),
    "subprocess": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(builtins.open, str(marker), "w"),
    "torch.save": lambda marker: Call(torch.save, {}, str(marker)),
}
FILES = {
    "raw pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "torch zip": lambda content, path: torch.save(content, path),
    "torch legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}


def _refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("call", CALLS)
def test_no_call_in_a_pickle_is_made(tmp_path, call, file):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    FILES[file]({"model": STATE, "args": CALLS[call](marker)}, path)
    message = _refusal(path)
    assert "needs code to load" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message
    assert not marker.exists()


def test_the_calls_above_would_leave_their_mark(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(CALLS["os.system"](marker)))
    assert marker.exists()


def test_what_stands_in_for_metadata_cannot_be_called(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    code = b"\x80\x02c__builtin__\ngetattr\nctorch\nTensor\nX\x04\x00\x00\x00save\x86R"  # getattr(torch.Tensor, "save")
    code += b"X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", code)
        archive.writestr("weights/byteorder", "little")
        archive.writestr("weights/version", "3\n")
    assert "damaged or not a checkpoint" in _refusal(path)
    assert not marker.exists()


def test_loading_a_hostile_file_leaves_the_model(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    torch.save({"model": CALLS["os.system"](marker)}, path)
    model = Conformer(ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1))
    before = model.cls_token.clone()
    with pytest.raises(CheckpointError, match="needs code to load"):
        load_weights(model, path)
    assert torch.equal(model.cls_token, before)
    assert not marker.exists()


def _bytes(kind):
    buffer = io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(STATE)
    torch.save(STATE, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_refused(tmp_path, kind):
    path, whole = tmp_path / "weights.pth", _bytes(kind)
    path.write_bytes(whole)
    assert read_state_dict(path).keys() == STATE.keys()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        _refusal(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_flipped_bits_give_nothing_but_a_clear_error(tmp_path, kind):
    path, whole, chance = tmp_path / "weights.pth", _bytes(kind), random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)  # the bit may have been in a value, or in padding
        except CheckpointError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ": is empty; download or copy it again"),
        (b"<html>404 Not Found</html>", "it begins with b'<html>404"),
        (b"version https://git-lfs", "neither a torch nor a safetensors file"),
        (b"PK\x03\x04 not really a zip", "damaged or not a checkpoint"),
        (pickle.dumps({"cls_token": [1.0]}), "damaged or not a checkpoint"),
    ],
    ids=["empty", "html", "text", "zip-magic", "plain-pickle"],
)
def test_other_files_are_refused(tmp_path, content, problem):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert problem in _refusal(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    assert "is a folder" in _refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in _refusal(
        tmp_path / "pipe"
    )  # and it was not opened, which would wait for a writer
    assert "is a pipe or a device" in _refusal("/dev/zero")


def test_a_bundle_is_named_as_one(tmp_path):
    (tmp_path / MANIFEST).write_text("{}")
    for path in (tmp_path, tmp_path / MANIFEST):
        assert "is a bundle, which has an engine and no weights; run it by conformer_fast.load" in _refusal(path)
        assert "--bundle" in _refusal(path)


@pytest.mark.parametrize("name", ["nothing.pth", "no/nothing.pth", "weights.pth/inside", "a" * 300])
def test_missing_files_are_refused(tmp_path, name):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(("name", "text"), [("a\0b", r"a\x00b"), ("a\x1b[2J\n", r"a\x1b[2J\n"), ("\ud800", r"\ud800")])
@pytest.mark.parametrize("read", [read_state_dict, adopt, lambda path: create_model("digits", path)])
def test_names_that_no_file_has_are_refused(read, name, text):
    with pytest.raises(CheckpointError) as caught:
        read(name)
    assert str(caught.value).startswith(f"{text}: no such file")


def _asks_for_much():
    """A Conformer's sizes: its widest layers alone would take 100 GB."""
    return {
        "cls_token": torch.ones(1, 1, 64),
        "trans_patch_conv.weight": torch.ones(1, 1, 4, 4),
        "conv_1.conv3.weight": torch.ones(64 * 256, 1, 1, 1),
        "trans_1.mlp.fc1.weight": torch.ones(64, 1),
        "conv1.weight": torch.ones(1, 3, 1, 1),
        "conv_trans_2.x": torch.ones(1),
        "conv_trans_3.x": torch.ones(1),
    }


@pytest.mark.filterwarnings("ignore:these weights have the sizes of no published variant:UserWarning")
@pytest.mark.parametrize("use", [adopt, lambda path: create_model(recognize(_asks_for_much()).config(), path)])
def test_the_names_are_compared_before_memory_is_taken(tmp_path, monkeypatch, use):
    def meta(*args):
        assert torch.get_default_device().type == "meta"
        return Conformer(*args)

    monkeypatch.setattr("conformer_fast.checkpoints.weights.Conformer", meta)
    monkeypatch.setattr("conformer_fast.checkpoints.create.Conformer", meta)
    monkeypatch.setattr(Conformer, "to_empty", _never)
    path = tmp_path / "weights.pth"
    torch.save(_asks_for_much() | {"trans_norm.x": torch.ones(1), "conv_cls_head.weight": torch.ones(7, 1)}, path)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"missing: conv1.bias|missing: bn1\.weight"):
        use(path)


def test_sizes_beyond_any_model_are_refused_by_name(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(_asks_for_much() | {"conv_1.conv3.weight": torch.ones(64 * 257, 1, 1, 1)}, path)
    with pytest.raises(CheckpointError, match="channel_ratio must be at most 256, got 257"):
        adopt(path)


def test_a_file_that_cannot_be_opened_says_so(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("conformer_fast.checkpoints.reading.open_regular", denied)
    assert _refusal(path).endswith("cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: [torch.ones(2)], "holds one list, not a state dict"),
        (lambda: torch.ones(2), "holds one Tensor, not a state dict"),
        (lambda: {"epoch": 3}, "'epoch' is of type int, not a tensor"),
        (lambda: {1: torch.ones(2)}, "not a state dict: 1 is of type Tensor"),
        (lambda: {"model": {"cls_token": "text"}}, "'cls_token' is of type str"),
        (lambda: {"w": torch.eye(2).to_sparse()}, "w is not a plain dense tensor"),
        (lambda: {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "w is not a plain dense tensor"),
        (lambda: {"w": torch.empty(2, device="meta")}, "w is not a plain dense tensor"),
    ],
    ids=["list", "tensor", "number", "number-key", "text", "sparse", "nested", "meta"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, problem):
    path = tmp_path / "weights.pth"
    torch.save(content(), path)
    assert problem in _refusal(path)


def test_a_whole_pickled_module_asks_for_its_state_dict(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "needs code to load (torch.nn.modules.linear.Linear)" in _refusal(path)


def test_an_ordered_state_dict_of_parameters_is_read(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(OrderedDict(cls_token=torch.nn.Parameter(torch.ones(2))), path)
    tensor = read_state_dict(path)["cls_token"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_a_tensor_larger_than_its_storage_is_not_unfolded(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"cls_token": torch.zeros(1).expand(1 << 40)}, path)  # four bytes in the file, four terabytes as a copy
    assert "claim more bytes than the file has" in _refusal(path)


def _never(*args, **kwargs):
    raise AssertionError("the file was given to torch")


def test_a_compressed_zip_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 26))
    assert path.stat().st_size < 1 << 17
    monkeypatch.setattr(torch, "load", _never)
    assert "entries are larger than the file" in _refusal(path)


def test_a_zip_that_declares_more_than_it_has_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "liar.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first entry of the central directory
    content[entry + 24 : entry + 28] = struct.pack("<I", 1 << 31)  # its uncompressed size
    path.write_bytes(content)
    monkeypatch.setattr(torch, "load", _never)
    assert "entries are larger than the file" in _refusal(path)


def _safetensors(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(8, 16)}, length=1 << 62), "header too large"),
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(8, 16)}, length=1 << 20), "invalid header length"),
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(8, 16)}, length=20), "invalid JSON in header"),
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(4, 12)}), "invalid offset for tensor `b`"),
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(0, 8)}), "invalid offset for tensor `"),
        (_safetensors({"a": _tensor(0, 8), "b": _tensor(8, 1 << 40)}), "invalid shape, data type, or offset"),
        (_safetensors({"a": _tensor(8, 0), "b": _tensor(8, 16)}), "invalid offset for tensor `a`"),
        (_safetensors({"a": _tensor(0, 16, shape=(1 << 40,))}), "invalid shape, data type, or offset"),
        (_safetensors({"a": _tensor(0, 16, shape=(-4,))}), "integer `-4`"),
        (_safetensors({"a": _tensor(0, 16, shape=("x", 1 << 40))}), 'string "x"'),
        (_safetensors({"a": _tensor(0, 16, shape=(4,), dtype="X9")}), "unknown variant `X9`"),
        (_safetensors({"a": _tensor(0, 16, shape=(32,), dtype="F4")}), "PyTorch has no dtype 'F4'"),
        (_safetensors({"a": 3}), "integer `3`"),
        (_safetensors({"a": _tensor(0, 8)}), "file not fully covered"),
        (_safetensors({"a": _tensor(8, 16)}), "invalid offset for tensor `a`"),
        (_safetensors(b"{not json"), "invalid JSON in header"),
        (_safetensors(b"{" * 4000), "invalid JSON in header"),
        (_safetensors(b'{"a":' * 4000 + b"1" + b"}" * 4000), "invalid JSON in header"),
        (_safetensors({"\n\x1b[2J" + "a" * 999: _tensor(8, 16)}), "tensor `\\n\\x1b[2Ja"),
    ],
    ids=[
        "huge-header",
        "header-beyond-end",
        "short-header",
        "overlapping",
        "same-bytes-twice",
        "offset-beyond-end",
        "backwards",
        "shape-too-large",
        "negative-shape",
        "shape-of-words",
        "unknown-dtype",
        "dtype-without-tensors",
        "no-description",
        "bytes-behind",
        "bytes-before",
        "not-json",
        "open-braces",
        "deeply-nested",
        "name-of-controls",
    ],
)
def test_lying_safetensors_are_refused(tmp_path, content, problem):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    message = _refusal(path)
    assert "damaged or not a checkpoint (" in message
    assert problem in message
    assert len(message) < 700


def test_an_honest_safetensors_of_the_same_making_is_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(_safetensors({"a": _tensor(0, 8), "b": _tensor(8, 16)}))
    assert read_state_dict(path)["b"].tolist() == [0.0, 0.0]


def test_a_file_called_safetensors_must_hold_that(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save(STATE, path)
    assert "damaged or not a checkpoint (Error while deserializing: header too large)" in _refusal(path)


def test_safetensors_may_have_any_name(tmp_path):
    save_weights(STATE, tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").rename(tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth").keys() == STATE.keys()
