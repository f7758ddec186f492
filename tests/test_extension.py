"""The extension: used only if it is of these sources, and missed aloud, once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import conformer_fast
from conformer_fast import extension
from conformer_fast.evaluation import decode
from conformer_fast.model.detector import operators
from conformer_fast.preprocessing import cpu
from conformer_fast.preprocessing.cpu import preprocess, preprocess_batch

WITHOUT = """
import sys
sys.modules["conformer_fast._C"] = None  # importing it raises ImportError
"""
REASON = "csrc/ was not built (why); install a C++17 compiler"


@pytest.fixture
def fresh():
    """As in a new process, before and after."""
    caches = extension.unusable, extension.warn_without
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def without(monkeypatch, fresh):
    for module in (cpu, operators):
        monkeypatch.setattr(module, "_C", None)
    monkeypatch.setattr(extension, "unusable", lambda: REASON)


def said(call) -> list[str]:
    """What it warns of. Not Python's of what other tests left open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        call()
    return [str(warning.message) for warning in caught]


def picture() -> Image.Image:
    return Image.linear_gradient("L")


def test_the_first_picture_says_it_and_no_other(without):
    (warning,) = said(lambda: preprocess(picture()))
    assert warning == f"{extension.NOTE}: {REASON}"
    assert said(lambda: (preprocess(picture()), preprocess_batch([picture()] * 2))) == []


def test_a_detectors_regions_say_it_too_and_a_gpus_do_not(without):
    def suppressed():
        return operators.nms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), 0.5)

    assert not operators._by_extension(torch.zeros(1, device="meta"))
    (warning,) = said(suppressed)
    assert warning == f"{extension.NOTE}: {REASON}"
    assert said(suppressed) == []


def test_decoding_processes_leave_it_to_their_parent(without, monkeypatch):
    class Pipe:
        def recv(self):
            preprocess(picture())
            raise EOFError

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    before = torch.get_num_threads()
    try:
        assert said(lambda: decode.serve(Pipe())) == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(cpu._C is None, reason="csrc/ was not built")
def test_an_extension_of_other_sources_is_not_used(fresh, monkeypatch, tmp_path):
    assert extension.unusable() == ""
    shutil.copytree(extension.CHECKOUT / "csrc", tmp_path / "csrc")
    monkeypatch.setattr(extension, "CHECKOUT", tmp_path)
    with (tmp_path / "csrc" / "pack.h").open("a") as header:
        header.write("// changed\n")
    extension.unusable.cache_clear()
    assert extension.unusable() == ""  # no checkout: csrc/ of another package, beside an installed wheel
    (tmp_path / "setup.py").touch()
    extension.unusable.cache_clear()
    assert extension.unusable().startswith("csrc/ has changed since it was built; install this package again")


def test_one_that_does_not_load_has_the_loaders_reason(fresh, monkeypatch, tmp_path):
    (tmp_path / "_C.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.setattr(conformer_fast, "__path__", [str(tmp_path)])
    monkeypatch.delattr(conformer_fast, "_C", raising=False)
    monkeypatch.delitem(sys.modules, "conformer_fast._C", raising=False)
    assert extension.unusable().startswith("csrc/ was not built (undefined symbol); install a C++17 compiler")


def test_where_it_is_missing_info_and_commands_say_so_with_the_next_step(tmp_path):
    picture().convert("RGB").save(tmp_path / "picture.png")
    command = "predict", "picture.png", "picture.png", "--model", "digits", "--backend", "reference"
    code = f"{WITHOUT}\nfrom conformer_fast.cli.main import main\nmain(['info'])\nmain({[*command]})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (images,) = [line for line in done.stdout.splitlines() if line.startswith("images: ")]
    assert images.startswith("images: Pillow and PyTorch, slower and with the same numbers: csrc/ was not built; ")
    assert images.endswith("install a C++17 compiler and then this package again, or a wheel of it")
    assert done.stderr.count(extension.NOTE) == 1


def test_the_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "a.cpp").write_text("one")
    (tmp_path / "b.h").write_text("two")
    digests = [extension.digest(tmp_path)]
    (tmp_path / "b.h").write_text("tow")
    digests.append(extension.digest(tmp_path))
    Path(tmp_path / "b.h").rename(tmp_path / "c.h")
    digests.append(extension.digest(tmp_path))
    (tmp_path / "notes.txt").touch()
    assert len({*digests, extension.digest(tmp_path)}) == 3
