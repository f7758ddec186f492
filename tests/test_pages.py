"""Pages of docs/ do what they say: the quickstart, the way of one's own model, and each example of an error are run."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from page_blocks import PAGES, blocks

import conformer_fast as cf
from conformer_fast.cli.main import STATUSES
from conformer_fast.datasets.digits import digit_image, load_pixels, split_indices

ROOT = Path(__file__).parents[1]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

pytestmark = pytest.mark.slow


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """A folder that the commands run in, with `conformer-fast` found."""
    command = tmp_path / "bin" / "conformer-fast"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m conformer_fast.cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, change=lambda code: code) -> str:
    """What the page's commands print: each block is a shell, and those of Python are one program."""
    printed, names = [], {"__name__": "page"}
    for language, code in blocks(page, "sh", "python"):
        if language == "python":
            exec(compile(code, page, "exec"), names)
        else:
            script = f"set -e\ntrap 'kill $(jobs -p) 2>/dev/null || :; wait' EXIT\n{change(code)}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
            printed.append(done.stdout)
    return "\n".join(printed)


def test_the_quickstart(reader):
    printed = run("index.md")
    assert re.search(r"handwritten_7.png\n +\d+\.\d\d%  7 \(7\)", printed)
    assert re.search("^auto: ", printed, re.MULTILINE)
    assert (reader / "digits-bundle" / "manifest.json").is_file()


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_my_own_model(reader):
    """A checkpoint as the official training writes it, whose classes are not in the order of their folders."""
    state = cf.create_model("digits", weights="packaged").state_dict()
    torch.save({"model": state, "model_ema": state, "epoch": 299}, "trained.pth")
    Path("classes.txt").write_text("\n".join(NAMES))
    pixels, labels = load_pixels()
    train, held_out = split_indices(labels)
    for part, indices in (("train", train[:32]), ("val", held_out[:32])):
        for index in indices:
            folder = Path(part, NAMES[labels[index]])
            folder.mkdir(parents=True, exist_ok=True)
            digit_image(pixels[index]).save(folder / f"{index}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    printed = run("own-model.md", lambda code: code.replace("8000", port))

    of_both = re.findall(r"^sum +100\.00% \(32\)", printed, re.MULTILINE)
    assert len(of_both) == 3  # PyTorch, "auto" and int8: a chance of one in ten if the names were not used
    assert cf.load("mine").settings.precision == "int8"
    assert json.loads(printed.splitlines()[-1])["predictions"][0]["top"][0]["label"] == "seven"


def test_averaged_weights_are_taken_out_as_the_page_says(reader):
    model = cf.create_model("digits", weights="packaged")
    averaged = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": averaged}, "trained.pth")
    ((_, code),) = blocks("own-model.md", "py")
    exec(code, {"cf": cf})
    found = cf.read_state_dict("averaged.safetensors")
    assert torch.equal(found["cls_token"], averaged["cls_token"])


def every_error() -> list[str]:
    names = (name for name in cf.__all__ if inspect.isclass(getattr(cf, name)))
    return [name for name in names if issubclass(getattr(cf, name), cf.ConformerFastError)]


def examples_of_errors() -> list[tuple[str, str, str]]:
    """(error, code, message) of each example on its page."""
    text = (PAGES / "errors.md").read_text(encoding="utf-8")
    found = []
    for section in re.split("^### ", text, flags=re.MULTILINE)[1:]:
        pairs = re.findall(r"```python\n(.+?)\n```\n\n```text\n(.+?)\n```", section, re.DOTALL)
        found += [(section.partition("\n")[0], *pair) for pair in pairs]
    return found


def test_every_error_is_on_its_page():
    text = (PAGES / "errors.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(every_error())
    assert len(examples_of_errors()) == text.count("```python")


@pytest.mark.parametrize(("error", "code", "message"), examples_of_errors())
def test_errors_say_what_their_page_says(reader, error, code, message):
    model = cf.create_model("digits", weights="packaged")
    torch.save(model.state_dict(), "trained.pth")
    Path("cat.jpg").write_bytes(b"no picture")
    Path("empty").mkdir()
    with pytest.raises(getattr(cf, error)) as raised:
        exec(code, {"cf": cf, "model": model})
    assert type(raised.value).__name__ == error
    assert re.fullmatch(re.escape(message).replace(re.escape("..."), ".+"), str(raised.value))


def test_the_exit_statuses_are_on_the_page_of_errors():
    text = (PAGES / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == STATUSES
