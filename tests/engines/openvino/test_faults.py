"""CPU engines where something goes wrong: what is kept is damaged, there is no room, a build or a run fails."""

import errno
import itertools
import subprocess
import sys
import warnings

import pytest
import torch

import conformer_fast as cf

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import openvino as ov
from openvino_engines import assert_right, compiled, images

from conformer_fast.engines import cache
from conformer_fast.engines.openvino import engine as engine_module


def test_what_is_damaged_is_built_again(small_model, own_cache, builds):
    """An engine, and what holds its weights."""
    batch = images(2, 3, 32, 32)
    first = compiled(small_model)(batch)
    paths = [*own_cache.glob("*.engine")]
    assert len(paths) == 2
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged; building it again") as warned:
        again = compiled(small_model)(batch)
    assert len([*warned]) == 2, [str(w.message) for w in warned]
    assert len(builds) == 2
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(small_model)(batch)
    assert len(builds) == 2


def test_works_without_a_folder(small_model, own_cache):
    own_cache.parent.write_text("in the way")
    batch = images(2, 3, 32, 32)
    fast = compiled(small_model)
    with pytest.warns(UserWarning, match="engines are not kept"):
        results = fast(batch)
    assert_right(results, small_model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(batch)  # kept in memory


def test_a_program_that_closes_all_descriptors():
    """As those do that become daemons. The weights are read again, not from what has the number now."""
    code = """
import os, torch
import conformer_fast as cf
model = cf.create_model("digits", "packaged")
fast = cf.compile(model, backend="openvino", precision="fp32")
fast(torch.zeros(1, 3, 64, 64))
os.closerange(3, 256)
with torch.no_grad():
    other = cf.create_model("digits", "packaged")
    other.trans_cls_head.weight.mul_(3)
cf.compile(other, backend="openvino", precision="fp32")(torch.zeros(1, 3, 64, 64))  # its weights have that number
images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
print(torch.allclose(fast(images).logits, model(images).logits, atol=1e-4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_temporary_folder_without_room(small_model, own_cache, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(ov, "save_model", full)
    with pytest.raises(cf.EngineError, match=r"write \d+ MB to the temporary folder .*set TMPDIR to another folder"):
        compiled(small_model)(images(1, 3, 32, 32))


def test_weights_that_find_no_room(small_model, monkeypatch):
    def full(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(engine_module, "MemoryFile", full)
    with pytest.raises(cf.EngineError, match=r"no room for the weights in memory \(Too many open files\); drop other"):
        compiled(small_model)(images(1, 3, 32, 32))


@pytest.mark.parametrize("content", [b"", b"{}\n", b"nonsense\n", b"[1]\nxml"])
def test_kept_weights_that_are_none(content, small_model, own_cache):
    """Of another version under the same key: they are written again."""
    batch = images(1, 3, 32, 32)
    expected = compiled(small_model)(batch)
    (entry,) = [entry for entry in cache.cached_engines() if "height" not in entry.fields]
    cache.cached(entry.fields, lambda: content, refused=(own_cache / f"{entry.key}.engine").read_bytes())
    assert all(map(torch.equal, compiled(small_model)(batch), expected))


def test_failed_build_is_tried_again(small_model, own_cache, monkeypatch):
    batch = images(2, 3, 32, 32)
    fast = compiled(small_model)
    with monkeypatch.context() as patch:
        patch.setattr("conformer_fast.engines.onnx.export.onnx_from_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast(batch)
    assert cache.cached_engines() == []
    assert_right(fast(batch), small_model, batch)


def test_failure_between_images_leaves_the_engine_usable(small_model, monkeypatch):
    batch = images(5, 3, 32, 32)
    fast = compiled(small_model)
    expected = fast(batch)
    calls = itertools.count()

    def failing(request, port, tensor):
        if next(calls) == 2:  # an image has two outputs
            raise MemoryError("no memory for the second image")
        write(request, port, tensor)

    write = ov.InferRequest.set_output_tensor
    with monkeypatch.context() as patch:
        patch.setattr(ov.InferRequest, "set_output_tensor", failing)
        with pytest.raises(MemoryError, match="second image"):
            fast(batch)
    assert all(torch.equal(*pair) for pair in zip(fast(batch), expected, strict=True))


def test_ctrl_c_after_engines_are_gone():
    """Its signal stack must outlive OpenVINO's engines: otherwise the next signal is a segmentation fault."""
    code = """
import signal, threading, torch
import conformer_fast as cf

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def drop():
    engines.clear()

engines = [cf.compile(cf.create_model("digits", "packaged"), backend="openvino") for _ in range(3)]
for index in range(3):
    engines[index](torch.zeros(2, 3, 64, 64))
thread = threading.Thread(target=drop)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
