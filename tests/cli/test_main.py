"""What all commands share: help, exit statuses, errors, and that nothing waits for PyTorch that does not need it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module

import pytest
import torch

import conformer_fast as cf
from conformer_fast.cli import main
from conformer_fast.cli.main import COMMANDS, STATUSES

LAZY = """
import sys
from conformer_fast.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
print(status, *({"torch", "numpy", "triton", "openvino"} & sys.modules.keys()), file=sys.stderr)
"""
TORCH_FREE = [["--help"], ["--version"], ["cache", "list"], *([name, "--help"] for name in COMMANDS)]
AT_ONCE = [["--help"], ["--version"], ["cache", "list"]]


@pytest.mark.parametrize("arguments", TORCH_FREE, ids=" ".join)
def test_what_needs_no_pytorch_does_not_import_it(arguments):
    done = subprocess.run([sys.executable, "-c", LAZY, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stderr == "0\n"
    assert done.stdout


def test_the_check_sees_an_import_of_pytorch():
    done = subprocess.run([sys.executable, "-c", LAZY, "info"], capture_output=True, text=True, timeout=60)
    assert "torch" in done.stderr.split()


@pytest.mark.parametrize("arguments", AT_ONCE, ids=" ".join)
def test_it_answers_at_once(arguments):
    """In 0.2 seconds on an idle machine."""
    command = [sys.executable, "-m", "conformer_fast.cli.main", *arguments]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


REPEATED = """
import warnings
from conformer_fast.cli import cache, main

def run(options):
    warnings.warn("the same")
    warnings.warn("the same")
    warnings.warn("another\\nline")
    return 0

cache.run = run
main.main(["cache", "list"])
"""


def test_what_is_said_twice_is_printed_once():
    done = subprocess.run([sys.executable, "-c", REPEATED], capture_output=True, text=True, timeout=60)
    assert done.stderr == "conformer-fast: the same\nconformer-fast: another line\n"


def test_help_lists_the_commands_and_the_statuses(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--help"])
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert stopped.value.code == 0
    assert all(name in {line.split(" ")[0] for line in lines} for name in COMMANDS)
    table = lines[lines.index("exit status:") + 1 :]
    assert {int(line.split()[0]): " ".join(line.split()[1:]) for line in table} == STATUSES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module_that_says_what_it_is(command, capsys):
    module = import_module(f"conformer_fast.cli.{command.replace('-', '_')}")
    assert module.__doc__.startswith(f"conformer-fast {command}: ")
    with pytest.raises(SystemExit):
        main.main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"{cf.__version__}\n")


WRONG = {
    "no command": [],
    "another command": ["burn"],
    "no pictures": ["predict"],
    "no classes": ["predict", "x.png", "--topk", "0"],
    "no number": ["bench", "--batch", "many"],
    "the value --": ["export-server", "bundle", "--output=--"],
    "short, the value --": ["export-server", "bundle", "-o=--"],
    "several, the value --": ["bench", "--batch=--"],
    "models and a checkpoint": ["bench", "--models", "digits", "--weights", __file__],
    "another action": ["cache", "burn"],
    "other names": ["convert", "a", "b", "--to", "onnx"],
    "no images": ["tune", "--batch", "0"],
    "two ways to quantize": ["predict", "x.png", "--quantization", __file__, "--calibration", "."],
    "two kinds of labels": ["calibrate", "--data", ".", "-o", "q.json", "--labels", __file__, "--labels-from-folders"],
    "no such file": ["predict", "x.png", "--quantization", "absent.json"],
    "no such folder": ["predict", "x.png", "--calibration", "absent"],
    "no such key": ["predict", "x.png", "--bundle", ".", "--key", "absent"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_usage_errors(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: conformer-fast")
    assert err.splitlines()[-1].startswith("conformer-fast")
    status, out, json_err = run(*arguments, "--json")
    command = arguments[0] if arguments else None
    assert (status, json_err) == (2, err)
    assert json.loads(out)["command"] == command
    assert json.loads(out)["error"]["type"] == "UsageError"
    assert err.endswith(f": {json.loads(out)['error']['message']}\n")


IMPOSSIBLE = {
    "no weights": ("CheckpointError", ["predict", __file__, "--weights", "absent.pth"]),
    "no GPU": (
        "BackendError",
        ["predict", __file__, "--backend", "tensorrt", "--model", "digits"],
    ),
    "no ranges": ("ArgumentError", ["predict", __file__, "--precision", "int8", "--weights", "random"]),
    "no checkpoint": ("CheckpointError", ["convert", "absent.pth", "out.safetensors"]),
    "no bundle": ("BundleError", ["predict", __file__, "--bundle", "absent"]),
    "no data": ("DatasetError", ["evaluate", "--data", "absent", "--model", "digits", "--backend", "reference"]),
}


@pytest.mark.parametrize(("kind", "arguments"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of them is that there is no GPU")
def test_what_cannot_be_done_is_one_line_and_status_2(run, kind, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"conformer-fast {arguments[0]}: ")
    status, out, json_err = run(*arguments, "--json")
    error = json.loads(out)["error"]
    assert (status, json_err) == (2, err)
    assert json.loads(out) == {"command": arguments[0], "error": {"type": kind, "message": error["message"]}}
    assert err == f"conformer-fast {arguments[0]}: {error['message']}\n"


@pytest.mark.parametrize(
    "error",
    [
        cf.ConformerFastError("why"),
        cf.ImageError("why"),
        cf.GPUMemoryError("why", 1, 2),
        torch.OutOfMemoryError("why"),
        OSError("why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_tell_the_user_something_are_one_line(run, monkeypatch, error):
    monkeypatch.setattr(cf, "convert", lambda *_, **__: raise_(error))
    assert run("convert", "a", "b") == (2, "", "conformer-fast convert: why\n")


def test_what_arguments_and_files_say_is_one_line(run, tmp_path):
    """Whatever they are: escaped, and not without an end."""
    for name in ("a\nb", "\x1b[2J", "\u202ename", "\udcff", "x" * 5000):
        for arguments in (["info", name], ["bench", "--batch", name], ["predict", name, "--bundle", name]):
            status, out, err = run(*arguments)
            assert (status, out) == (2, "")
            line = err.splitlines()[-1]
            assert line.startswith(f"conformer-fast {arguments[0]}: ")
            assert line.isprintable()
            assert len(line) < 2100


def test_a_fault_of_ours_is_a_traceback(run, monkeypatch):
    for error in (KeyError("int8"), ValueError("int8")):
        monkeypatch.setattr(cf, "convert", lambda *_, error=error, **__: raise_(error))
        with pytest.raises(type(error), match="int8"):
            run("convert", "a", "b")


def test_no_memory_on_the_cpu_is_one_line(run, monkeypatch):
    """Where no command has better words, as bench has for its batch."""
    line = ("bench", "--models", "digits", "--batch", "1000000000", "--rounds", "1")
    status, out, err = run(*line)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.endswith(" images of 64x64 are more than the memory of cpu holds; give a smaller batch\n")
    monkeypatch.setattr(cf, "benchmark", lambda *_, **__: torch.empty(10**15))
    status, out, err = run(*line)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "can't allocate memory" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("cache", "list"), ("convert", "absent", "b")], ids=" ".join)
def test_a_full_disk_is_one_line(arguments):
    command = [sys.executable, "-m", "conformer_fast.cli", *arguments, "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_ctrl_c_is_one_line(run, monkeypatch):
    monkeypatch.setattr(cf, "convert", lambda *_, **__: raise_(KeyboardInterrupt()))
    assert run("convert", "a", "b") == (130, "", "conformer-fast convert: interrupted\n")
    status, out, _ = run("convert", "a", "b", "--json")
    error = {"type": "KeyboardInterrupt", "message": "interrupted"}
    assert (status, json.loads(out)) == (130, {"command": "convert", "error": error})


def raise_(error: BaseException) -> None:
    raise error


# Options that would be ignored. Each is refused before any work.

BUNDLE = ["--bundle", "B"]
FOLDER = os.path.dirname(__file__)
IGNORED = {
    "predict --bundle --model": (["predict", "x", *BUNDLE, "--model", "digits"], "--model"),
    "predict --bundle --weights": (["predict", "x", *BUNDLE, "--weights", "none"], "--weights"),
    "predict --bundle --backend": (["predict", "x", *BUNDLE, "--backend", "reference"], "--backend"),
    "predict --bundle --precision": (["predict", "x", *BUNDLE, "--precision", "fp32"], "--precision"),
    "predict --bundle --quantization": (["predict", "x", *BUNDLE, "--quantization", __file__], "--quantization"),
    "predict --bundle --calibration": (["predict", "x", *BUNDLE, "--calibration", FOLDER], "--calibration"),
    "predict --bundle --calibration-limit": (
        ["predict", "x", *BUNDLE, "--calibration-limit", "8"],
        "--calibration-limit",
    ),
    "predict --key": (["predict", "x", "--key", __file__], "--key"),
    "predict --quantization": (["predict", "x", "--quantization", __file__], "--quantization"),
    "predict --calibration": (["predict", "x", "--calibration", FOLDER, "--precision", "fp32"], "--calibration"),
    "predict --calibration-limit": (["predict", "x", "--calibration-limit", "8"], "--calibration-limit"),
    "evaluate --bundle --backend": (["evaluate", "--data", ".", *BUNDLE, "--backend", "openvino"], "--backend"),
    "evaluate --bundle --precision": (["evaluate", "--data", ".", *BUNDLE, "--precision", "bf16"], "--precision"),
    "evaluate --bundle --calibration": (["evaluate", "--data", ".", *BUNDLE, "--calibration", FOLDER], "--calibration"),
    "evaluate --bundle --no-reference --model": (
        ["evaluate", "--data", ".", *BUNDLE, "--no-reference", "--model", "digits"],
        "--model",
    ),
    "evaluate --bundle --no-reference --weights": (
        ["evaluate", "--data", ".", *BUNDLE, "--no-reference", "--weights", "w"],
        "--weights",
    ),
    "evaluate --key": (["evaluate", "--data", ".", "--key", __file__], "--key"),
    "evaluate --quantization": (["evaluate", "--data", ".", "--quantization", __file__], "--quantization"),
    "bench --quantization": (["bench", "--models", "digits", "--quantization", __file__], "--quantization"),
    "bench --quantization of several": (["bench", "--precision", "int8", "--quantization", __file__], "--quantization"),
    "diff --quantization": (["diff", "--quantization", __file__], "--quantization"),
    "diff --calibration": (["diff", "--precisions", "fp16", "--calibration", FOLDER], "--calibration"),
    "calibrate --labels": (["calibrate", "--data", ".", "-o", "q", "--labels", __file__], "--labels"),
    "calibrate --labels-from-folders": (
        ["calibrate", "--data", ".", "-o", "q", "--labels-from-folders"],
        "--labels-from-folders",
    ),
    "calibrate --timed": (["calibrate", "--data", ".", "-o", "q", "--timed", "openvino"], "--timed"),
    "export --size": (["export", "-o", "a.onnx", "--size", "96"], "--size"),
    "export --quantization": (["export", "-o", "a.onnx", "--quantization", __file__], "--quantization"),
    "build --features --class-names": (["build", "-o", "b", "--features", "--class-names", __file__], "--class-names"),
    "build --outputs --class-names": (
        ["build", "-o", "b", "--outputs", "3.map", "--class-names", __file__],
        "--class-names",
    ),
    "build --calibration": (["build", "-o", "b", "--calibration", FOLDER], "--calibration"),
}


@pytest.mark.parametrize(("arguments", "named"), IGNORED.values(), ids=IGNORED)
def test_an_option_that_would_be_ignored_is_refused_by_name(run, monkeypatch, arguments, named):
    for name in ("create_model", "load", "read_state_dict", "benchmark"):
        monkeypatch.setattr(cf, name, lambda *_, **__: pytest.fail("worked first"))
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert named in err.replace(",", "").replace(";", "").split()
    assert "leave " in err


def test_nobody_reads_the_output():
    """conformer-fast info --json | true"""
    for arguments in (("info", "--json"), ("cache", "list")):
        command = [sys.executable, "-m", "conformer_fast.cli", *arguments]
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
        os.close(write)
        assert (done.returncode, done.stderr) == (2, "")


def test_options_are_not_abbreviated(capsys):
    assert main.main(["cache", "list", "--js"]) == 2
    err = capsys.readouterr().err
    assert "unrecognized arguments: --js" in err
    assert err.startswith("usage: conformer-fast cache ")
