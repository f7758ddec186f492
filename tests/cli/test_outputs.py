"""No command writes over what it reads, or in the place of a device; it is said before any work."""

from __future__ import annotations

import argparse
import os
import re
import stat
from importlib import import_module
from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.cli import arguments
from conformer_fast.cli.main import COMMANDS, main

PATHS = re.compile(r"FILE|DIR|IMAGE|BUNDLE|^IN$|OUT")  # in what a path is called in the help

WRITES = {  # how each command is asked for a file; {} is the file
    "batch": "batch --model digits pictures -o {}",
    "export": "export --model digits -o {}",
    "calibrate": "calibrate --model digits --data pictures -o {}",
    "diff": "diff --model digits --svg {}",
    "evaluate": "evaluate --model digits --data pictures --resume {}",
    "convert": "convert weights.safetensors {}",
}
READS = {  # the same, with {} among what is read
    "export --weights": "export --weights {} -o {}",
    "export --quantization": "export --precision int8 --quantization {} -o {}",
    "calibrate --weights": "calibrate --weights {} --data pictures -o {}",
    "calibrate --labels": "calibrate --max-drop 1 --labels {} --data pictures -o {}",
    "calibrate --data": "calibrate --data {} -o {}",
    "diff --images": "diff --images pictures/other.png {} --svg {}",
    "diff --weights": "diff --weights {} --svg {}",
    "evaluate --labels": "evaluate --data pictures --labels {} --resume {}",
    "evaluate --data": "evaluate --data {} --resume {}",
    "evaluate --key": "evaluate --data pictures --bundle . --key {} --resume {}",
    "convert": "convert {} {}",
    "build --class-names": "build --class-names {} -o {}",
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder of a picture and weights, in which any work fails."""
    for name in ("create_model", "read_state_dict", "convert", "open_dataset", "load"):
        monkeypatch.setattr(cf, name, lambda *_, **__: pytest.fail("worked first"))
    (tmp_path / "pictures").mkdir()
    for name in ("weights.safetensors", "pictures/one.png", "pictures/other.png"):
        (tmp_path / name).write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(run, command, message):
    status, out, err = run(*command.split())
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize("command", WRITES.values(), ids=WRITES)
def test_what_is_no_file_is_refused(run, command, work):
    os.mkfifo("fifo.safetensors")
    Path("link.safetensors").symlink_to("fifo.safetensors")
    before = sorted(os.listdir())
    for name in ("fifo.safetensors", "link.safetensors"):
        refused(run, command.format(name), f"{name} is a device, pipe or socket")
    refused(run, command.format("pictures"), "pictures is a folder")
    refused(run, command.format("a\0.safetensors"), "cannot be a file's name")
    assert stat.S_ISFIFO(os.stat("link.safetensors").st_mode)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", WRITES.values(), ids=WRITES)
def test_what_is_a_device_is_refused(run, command, work):
    """One of its own: the machine's would be lost if root ran a command that is wrong."""
    try:
        os.mknod("null.safetensors", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except (AttributeError, PermissionError):
        pytest.skip("only root makes devices")
    refused(run, command.format("null.safetensors"), "null.safetensors is a device, pipe or socket")
    assert stat.S_ISCHR(os.lstat("null.safetensors").st_mode)


@pytest.mark.parametrize("command", READS.values(), ids=READS)
def test_what_is_read_is_not_written(run, command, work):
    Path("link.safetensors").symlink_to("weights.safetensors")
    Path("hard.safetensors").hardlink_to("weights.safetensors")
    for name in ("weights.safetensors", "./weights.safetensors", "link.safetensors", "hard.safetensors"):
        message = f"{os.path.normpath(name)} is the file weights.safetensors, which is read and would be lost"
        refused(run, command.format("weights.safetensors", name), message)
    assert Path("weights.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("kept", ["pretrained", "packaged"])
def test_weights_that_no_path_names_are_not_written(run, kept, work, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", "cache")
    weights = Path("cache/weights/tiny.pth")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"precious")
    if kept == "packaged":
        weights = Path(cf.__file__).parent / "data" / "digits.safetensors"
    Path("link").symlink_to(weights.absolute())
    for name in (weights, "link"):
        refused(run, f"export --model digits -o {name}", "which is read and would be lost; give another name")


@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
@pytest.mark.parametrize("file", ["one.png", "TWO.JPG", "0.tar", "0.parquet"])
def test_what_lies_in_the_data_is_not_written(run, name, file, work):
    file = Path("pictures", file)
    file.write_bytes(b"precious")
    refused(run, WRITES[name].format(file), f"{file} holds pictures, and no command writes over such files")
    assert file.read_bytes() == b"precious"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_path_is_forgotten(command):
    """What is read and what is written is known of every option that is a path."""
    parser = argparse.ArgumentParser()
    import_module(f"conformer_fast.cli.{command.replace('-', '_')}").add_arguments(parser)
    paths = {
        action.dest for action in parser._actions if isinstance(action.metavar, str) and PATHS.search(action.metavar)
    }
    assert paths <= {*arguments.INPUTS, *arguments.OUTPUTS}


@pytest.mark.parametrize("command", ["convert", "calibrate", "export"])
def test_help_says_what_is_written_over(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "written over if it is there" in " ".join(capsys.readouterr().out.split())
