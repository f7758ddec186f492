"""Files of torch.save: read as torch.load reads them, without running what they name and without a list of that."""

import argparse
import datetime
import functools
import os
import pickle
import random
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from torch import nn

from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.errors import CheckpointError

BASE = torch.arange(24.0)
SAVED = {
    f"{dtype}": torch.arange(6).to(dtype)
    for dtype in {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16}
    | {torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64}
    | {torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2}
}
TENSORS = SAVED | {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "whole": BASE,
    "view": BASE[3:9],
    "same view": BASE[3:9],
    "matrix": BASE.view(4, 6).t(),
    "strided": BASE.view(4, 6)[:, ::2],
    "column": BASE.view(4, 6)[:, 1],
    "last": BASE[23],
    "repeated": torch.ones(2).expand(5, 2),
    "channels last": torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "parameter": nn.Parameter(torch.ones(2)),
    "buffer": nn.Buffer(torch.ones(3)),
}
ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content, path, zipped=True, **options):
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


@ZIPPED
@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_plain_tensor_is_what_torch_reads(tmp_path, zipped, protocol):
    tensors = {name: tensor for name, tensor in TENSORS.items() if zipped or not name.startswith("torch.uint")}
    path = save(OrderedDict(tensors), tmp_path / "weights.pth", zipped, pickle_protocol=protocol)
    read = read_state_dict(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert type(read[name]) is torch.Tensor
        assert read[name].dtype == tensor.dtype
        assert not read[name].requires_grad
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert read["channels last"].is_contiguous(memory_format=torch.channels_last)


def test_each_tensor_has_memory_of_its_own_and_no_more(tmp_path):
    read = read_state_dict(save({"a": BASE[3:9], "b": BASE[3:9], "c": BASE[::5]}, tmp_path / "weights.pth"))
    read["a"].zero_()
    assert torch.equal(read["b"], BASE[3:9])
    assert {name: tensor.untyped_storage().nbytes() for name, tensor in read.items()} == {"a": 24, "b": 24, "c": 20}


@ZIPPED
def test_the_other_byte_order_is_turned(tmp_path, monkeypatch, zipped):
    path = save({"a": BASE, "b": BASE.short()}, tmp_path / "weights.pth", zipped)
    monkeypatch.setattr(sys, "byteorder", "big")
    read = read_state_dict(path)
    assert read["a"].numpy().tobytes() == BASE.numpy().byteswap().tobytes()
    assert read["b"].numpy().tobytes() == BASE.short().numpy().byteswap().tobytes()


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        raise AssertionError("was made")


BESIDE = {
    "Namespace": argparse.Namespace(lr=1e-3, data=Path("data")),
    "SimpleNamespace": types.SimpleNamespace(lr=1e-3),
    "Path": Path("runs/1"),
    "PurePosixPath": PurePosixPath("runs/1"),
    "PureWindowsPath": PureWindowsPath("runs/1"),
    "partial": functools.partial(nn.LayerNorm, eps=1e-6),
    "class": Kept,
    "function": os.system,
    "partial of a function": functools.partial(os.system, "exit"),
    "time": datetime.datetime(2021, 5, 9) - datetime.timedelta(3),
    "Counter": Counter("aab"),
    "defaultdict": defaultdict(list, a=[1]),
    "deque": deque([1], maxlen=3),
    "set": {1, 2},
    "frozenset": frozenset((1, 2)),
    "numpy number": np.float64(0.8),
    "numpy array": np.arange(3),
    "bytes": b"\x00\xff",
    "large number": 1 << 100,
    "complex": 1j,
    "size": torch.Size((2, 3)),
    "dtype": torch.float16,
    "device": torch.device("cuda"),
    "sparse": torch.eye(2).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "keys of all kinds": {1: 1, 2.5: 2, None: 3, ("a", 1): 4, b"b": 5},
    "generator": torch.get_rng_state(),
    "python's generator": random.getstate(),
    "numpy's generator": np.random.get_state(),
}


@ZIPPED
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("what", BESIDE)
def test_what_people_save_beside_the_weights_is_left_alone(tmp_path, what, protocol, zipped):
    content = {"args": BESIDE[what], "model": {"cls_token": BASE}, "again": [BESIDE[what]]}
    path = save(content, tmp_path / "weights.pth", zipped, pickle_protocol=protocol)
    assert torch.equal(read_state_dict(path)["cls_token"], BASE)


@pytest.mark.parametrize("what", ["Path", "sparse", "class", "set"])
def test_what_is_left_alone_is_no_weight(tmp_path, what):
    path = save({"cls_token": BESIDE[what]}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"'cls_token' is of type|cls_token is not a plain dense tensor"):
        read_state_dict(path)


def test_a_tuple_is_no_key(tmp_path):
    """Tuples of tuples of ... can be too deep to be hashed: the interpreter itself ends then."""
    assert refusal(save({("a", 1): BASE}, tmp_path / "weights.pth")).endswith("<tuple> is of type Tensor, not a tensor")


@ZIPPED
def test_nothing_of_the_process_is_changed(tmp_path, monkeypatch, zipped):
    """Not even for a moment: another thread's torch.load knows no more classes than before, and has not to wait."""

    def never(*args, **kwargs):
        raise AssertionError("PyTorch's own reader was used")

    path = save({"args": argparse.Namespace(), "model": {"cls_token": BASE}}, tmp_path / "weights.pth", zipped)
    with monkeypatch.context() as patches:
        for name in ("_add_safe_globals", "_get_safe_globals", "_remove_safe_globals", "_clear_safe_globals", "load"):
            patches.setattr(torch._weights_only_unpickler, name, never)
        patches.setattr(torch, "load", never)
        assert torch.equal(read_state_dict(path)["cls_token"], BASE)
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("nbytes", [9_000_000_000, 3], ids=["huge", "small"])
def test_a_bytearray_is_not_made(tmp_path, nbytes):
    path = tmp_path / "weights.pth"
    code = pickle.PROTO + b"\x02c__builtin__\nbytearray\n" + pickle.LONG1 + b"\x08" + nbytes.to_bytes(8, "little")
    write_zip(path, code + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP)
    with pytest.raises(CheckpointError, match=r"needs code to load \(builtins\.bytearray\)"):
        read_state_dict(path)


def write_zip(path, code, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", code)
        for name, content in entries.items():
            archive.writestr(f"weights/{name}", content)


CODES = {  # pickles that no pickler writes
    "deep list": b"]" * 100_000 + b"a" * 99_999,
    "recursive": b"]q\x00h\x00a",
    "calls a number": b"K\x01)R",
    "calls a dictionary": b"})R",
    "calls what was made": b"cargparse\nNamespace\n)R)R",
    "appends to a number": b"K\x01K\x02a",
    "item of a list": b"]K\x01K\x02s",
    "a key too many": b"}(K\x01u",
    "builds a class": b"cargparse\nNamespace\n}b",
    "no mark": b"t",
    "empty": b"",
    "unknown number": b"h\x07",
    "registered class": b"\x82\x01",
    "other process": b"Pstorage\n",
    "foreign id": b"(X\x06\x00\x00\x00moduleK\x01K\x01K\x01K\x01tQ",
    "id without parts": b"K\x01Q",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_pickles_that_no_pickler_writes_are_refused(tmp_path, code):
    write_zip(tmp_path / "weights.pth", b"\x80\x02" + code + b".")
    with pytest.raises(
        CheckpointError, match=r"weights\.pth: (damaged or not a checkpoint|holds one|not a state dict)"
    ):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("module", [b"X\xe9\x03\0\0" + b"a" * 1001, b"K\x01"], ids=["long", "number"])
def test_a_class_has_a_short_name(tmp_path, module):
    """Not one that is put together again and again."""
    write_zip(tmp_path / "weights.pth", b"\x80\x02" + module + b"\x8c\x01a\x93.")
    assert "damaged or not a checkpoint (names a class by what is no name)" in refusal(tmp_path / "weights.pth")


def test_long_arguments_are_not_copied(tmp_path):
    """A pickle of a megabyte can call with the same million arguments a hundred thousand times."""
    for name in ("collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "argparse\nNamespace"):
        many = b"(" + b"N" * 500_000 + b"tq\x00" if name[0] != "c" else b"(" + b"NN\x86" * 300_000 + b"l\x85q\x00"
        code = many + f"c{name}\nq\x01h\x00R".encode() + b"0h\x01h\x00R" * 50_000
        write_zip(tmp_path / "weights.pth", b"\x80\x02" + code + b".")
        with pytest.raises(CheckpointError, match=r"needs code to load|holds one"):
            read_state_dict(tmp_path / "weights.pth")


def test_a_pickle_of_too_many_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("conformer_fast.checkpoints.pickled.MOST_STEPS", 1000)
    write_zip(tmp_path / "weights.pth", b"\x80\x02" + b"]" * 2000 + b".")
    assert "damaged or not a checkpoint (a pickle of more than 1000 steps)" in refusal(tmp_path / "weights.pth")


def test_what_the_optimizer_holds_is_not_read(tmp_path, monkeypatch):
    path = save({"model": {"cls_token": BASE}, "optimizer": {0: torch.ones(1000)}}, tmp_path / "weights.pth")
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(args) or empty(*args, **kwargs))
    read_state_dict(path)
    assert made == [(BASE.nbytes,)]


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_file_that_is_shortened_while_it_is_read_is_refused(tmp_path, monkeypatch, kind):
    """A mapped file would end the process."""
    path = tmp_path / "weights.bin"
    save({"cls_token": torch.ones(100_000)}, path, kind == "zip")
    empty = torch.empty

    def shorten(*args, **kwargs):
        os.truncate(path, 50_000)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", shorten)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        read_state_dict(path)


def test_programs_and_other_zip_files_are_refused_with_true_words(tmp_path):
    linear, path = nn.Linear(2, 2).eval(), tmp_path / "file.pt"
    torch.jit.save(torch.jit.trace(linear, torch.ones(1, 2)), path)
    assert "a TorchScript program" in refusal(path)
    torch.export.save(torch.export.export(linear, (torch.ones(1, 2),)), tmp_path / "file.pt2")
    assert "torch.export (.pt2)" in refusal(tmp_path / "file.pt2")
    with zipfile.ZipFile(path, "w") as archive:  # as older PyTorch wrote it
        archive.writestr("serialized_exported_program.json", "{}")
    assert "torch.export (.pt2)" in refusal(path)
    np.savez(tmp_path / "file.npz", cls_token=np.ones(3))
    assert "NumPy's arrays (.npz)" in refusal(tmp_path / "file.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/\x1b[2Jdocument.xml", "text")
    assert r"a zip file, but not PyTorch's (word/\x1b[2Jdocument.xml)" in refusal(path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert "neither a torch nor a safetensors file" in refusal(path)


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    return str(caught.value)
