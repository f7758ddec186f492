"""Command lines as nobody writes them: a documented status, a few lines, and nothing changed that was not asked for."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from attempts import Attempts, check_words, every, memory_within, nothing_run, said, untouched
from bundle_samples import write_plan
from damage import NAMES
from data_samples import picture, write_tar
from detector_samples import SMALL, filled
from hypothesis import strategies as st
from safetensors.torch import save_file

import conformer_fast as cf
from conformer_fast.checkpoints.metadata import metadata_of
from conformer_fast.cli import main as cli
from conformer_fast.cli.arguments import INPUTS, OUTPUTS
from conformer_fast.cli.main import COMMANDS, MOST_LETTERS, STATUSES

pytestmark = pytest.mark.slow

ENDLESS = {"serve"}  # a valid line of it runs until a signal; tests/serving has the wrong ones
LINES = 30  # of standard error: how the command is called, then what is wrong
MODEL = ("--model", "digits", "--weights", "packaged")
HERE = (*MODEL, "--backend", "reference")
TEXTS = (
    *(name for name in NAMES if "\0" not in name and "/" not in name and not name.startswith("\ud800")),
    *("-", "--", "-1", "0", "-0", "nan", "inf", "-inf", "1e999", "1e9", "0.5", "99999999999999999999", "1" * 5000),
    *(
        " ",
        "1 ",
        "\u0663",
        "\u00b2",
        "1_0",
        "0x10",
        "1,2",
        "1,2,3",
        ",",
        "3,2,1",
        "\udcff",
        "--help",
        "=",
        "@file",
        "%d",
    ),
)


class Files:
    """What command lines name: `given` is read, `own` is where they run and write.

    base: for each command, arguments that it takes and that are soon done
    """

    def __init__(self, folder: Path) -> None:
        self.given, self.own = folder / "given", folder / "own"
        for place in (self.given, self.own, self.given / "data" / "0", self.given / "empty"):
            place.mkdir(parents=True)
        for index in range(2):
            (self.given / "data" / "0" / f"{index}.png").write_bytes(picture(100 * index))
        (self.given / os.fsdecode(b"\xff.png")).write_bytes(picture(3))
        (self.given / "\x1b[2J\nx.png").write_bytes(picture(3))
        write_tar(self.given / "x.tar", {f"{index}/{index}.png": picture(9) for index in range(10)})
        (self.given / "broken.tar").write_bytes(b"no tar")
        (self.given / "labels.txt").write_text("0.png 0\n1.png 1\n")
        (self.given / "names.txt").write_text("".join(f"class {index}\n" for index in range(10)))
        (self.given / "latin").write_bytes(b"\xe9\n")
        (self.given / "key").write_bytes(b"a secret of 24 bytes ...")
        (self.given / "nothing").write_bytes(b"")
        (self.given / "deep.json").write_text("[" * 100_000)
        os.mkfifo(self.given / "pipe")
        (self.given / "device").symlink_to("/dev/zero")
        (self.given / "loop").symlink_to("loop")
        (self.given / "broken").symlink_to("nowhere")
        model = cf.create_model("digits", "packaged")
        state = dict(model.state_dict())
        cf.save_weights(state, self.given / "w.safetensors", recipe=model.recipe)
        parts = filled(replace(SMALL, proposals=5, detections=2))
        weights = {name: tensor for name, tensor in parts.state_dict().items() if tensor.is_floating_point()}
        save_file(weights, self.given / "d.safetensors", metadata=metadata_of(cf.Recipe(num_heads=4)))
        ranges = dict.fromkeys(("stem", "conv_1.conv1"), 1.0)
        cf.Quantization("int8", ranges).save(self.given / "int8.json")
        write_plan(self.given / "bundle", model)
        (self.own / "there.json").write_text("{}")
        (self.own / "folder").mkdir()
        given = {name: str(self.given / name) for name in os.listdir(self.given)}
        self.paths = (
            *given.values(),
            str(self.given),
            str(self.given / "no" / "where"),
            str(self.given / "data" / "0" / "0.png"),
        )
        image, data = str(self.given / "data" / "0" / "0.png"), given["data"]
        self.base: dict[str, Sequence[str]] = {
            "predict": (image, *HERE, "--size", "32"),
            "detect": (image, "--weights", given["d.safetensors"], "--backend", "reference"),
            "batch": (data, *HERE, "--size", "32", "--workers", "0", "-o", "out.csv"),
            "evaluate": ("--data", given["x.tar"], *HERE, "--size", "32", "--workers", "0", "--limit", "2"),
            "bench": ("--models", "digits", "--backend", "reference", "--batch", "1", "--size", "32", "--rounds", "1"),
            "tune": ("--models", "digits", "--batch", "1"),
            "diff": (
                *MODEL,
                "--images",
                image,
                "--size",
                "32",
                "--precisions",
                "fp32",
                "--implementations",
                "reference",
            ),
            "calibrate": (*MODEL, "--data", data, "--size", "32", "--limit", "1", "-o", "int8.json"),
            "export": (*MODEL, "--precision", "fp32", "-o", "x.onnx"),
            "build": (*MODEL, "--target", "sm1", "-o", "bundle"),
            "export-server": (given["bundle"], "-o", "repository"),
            "info": (),
            "convert": (given["w.safetensors"], "out.safetensors"),
            "cache": ("list",),
        }


# Options whose valid values may take long get no others than these
FEW = {
    "batch": ("1", "2"),
    "rounds": ("1",),
    "workers": ("0", "-1"),
    "limit": ("1", "2"),
    "calibration_limit": ("1", "2"),
    "size": ("32", "1", "15", "8751"),
    "models": ("digits",),
    "model": ("digits", "DIGITS", "tiny-p16"),
    "backend": ("reference", "triton", "tensorrt"),
    "timed": ("reference", "triton"),
    "target": ("sm1", "sm", "sm86x"),
    "implementations": ("reference", "kernel", "triton"),
    "weights": ("pretrained", "packaged"),
    "max_drop": ("nan", "-1"),
    "save": ("drawn.png", "drawn", "no/where/x.png", ""),
}
SLOW = {"1e9", "99999999999999999999", "1" * 5000}  # taken as numbers by what would count so far
COUNTED = {"rounds": SLOW, "workers": {*SLOW, "1 ", "\u0663", "1_0"}}  # the latter are processes
KEPT = (  # other engines take seconds, other processes too, all models and sizes minutes
    *("--backend", "reference", "--workers", "0"),
    *("--models", "--model", "digits", "--batch", "--rounds", "1", "--size", "32"),
)


def actions_of(command: str) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    cli._module(command).add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    return parser._actions


@st.composite
def command_lines(draw, files: Files) -> list[str]:
    command = draw(st.sampled_from(sorted(COMMANDS.keys() - ENDLESS)))
    line = list(files.base[command])
    actions = actions_of(command)
    for _ in range(draw(st.sampled_from((0, 1, 1, 2, 3)))):
        fault = draw(st.sampled_from(("option", "option", "option", "value", "gone", "twice", "junk", "last")))
        action = draw(st.sampled_from(actions))
        if fault == "option":
            values = [] if action.nargs == 0 else [draw(_value(files, action))]
            at = len(line) if action.option_strings else 0
            name = [draw(st.sampled_from(action.option_strings))] if action.option_strings else []
            line[at:at] = [f"{name[0]}={values[0]}"] if name and values and draw(st.booleans()) else [*name, *values]
        elif not line or fault == "junk":
            line.insert(draw(st.integers(0, len(line))), draw(st.sampled_from(("--nothing", "-z", "", "x", "--model"))))
        else:
            at = draw(st.integers(0, len(line) - 1))
            if fault == "value":
                line[at] = draw(_value(files, _action_before(actions, line, at)))
            elif fault == "gone" and line[at] not in KEPT:
                del line[at]
            elif fault == "twice":
                line.insert(at, line[at])
            elif fault == "last":
                del line[at + 1 :]
                line += [word for word in files.base[command] if word in KEPT]
    line.insert(
        draw(st.sampled_from((0,) * 9 + (len(line),))), draw(st.sampled_from((command,) * 19 + ("no-command",)))
    )
    return line


def _action_before(actions: list[argparse.Action], line: list[str], at: int) -> argparse.Action:
    """The one that takes what stands at this place; of a positional one, and of an option's name, the first."""
    named = {name: action for action in actions for name in action.option_strings}
    return named.get(line[at - 1] if at else "", actions[0])


def _value(files: Files, action: argparse.Action) -> st.SearchStrategy[str]:
    texts = [text for text in TEXTS if text not in COUNTED.get(action.dest, ())]
    if action.dest in OUTPUTS:
        refused = [path for path in files.paths if path.endswith((".png", ".tar", "pipe", "device"))]
        texts.remove("..")  # where nothing may be written here
        own = ["there.json", "folder", "new.json", "no/where.json", str(files.own), "w.onnx", "x.safetensors"]
        return st.sampled_from([*texts, *own, *refused])
    known = [*FEW.get(action.dest, map(str, action.choices or ()))]
    paths = files.paths if action.dest in INPUTS or not known else ()
    return st.sampled_from([*known * 3, *paths, *texts])


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    monkeypatch.setattr("conformer_fast.cluster.find_spec", lambda name: None)  # Ray would start processes
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):  # PyTorch and matplotlib make them when they are imported
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    with contextlib.suppress(ImportError):
        import matplotlib.figure  # noqa: F401, which asks a program for fonts, once
    found = Files(tmp_path)
    monkeypatch.chdir(found.own)
    return found


@contextlib.contextmanager
def kept_inputs(files: Files) -> Iterator[None]:
    before = {path: path.read_bytes() for path in files.given.rglob("*") if path.is_file()}
    yield
    assert before == {path: path.read_bytes() for path in before}


def status_of(line: Sequence[str]) -> int:
    try:
        return cli.main(line)
    except SystemExit as asked:  # --help
        return 0 if asked.code in (None, 0) else -1


def test_command_lines(files: Files, tmp_path, tried, capfd):
    attempt = Attempts(tmp_path)
    assert files.base.keys() == COMMANDS.keys() - ENDLESS
    statuses = dict.fromkeys(STATUSES, 0)

    def one(line: list[str]) -> None:
        allowed = (files.own, files.given / "bundle", tmp_path / "cache")  # a bundle: its lock
        with (
            attempt.timed(),
            untouched(files.given),
            kept_inputs(files),
            nothing_run(allowed, {"ctypes.dlopen"}),
            said() as warned,
        ):
            status = status_of(line)
        captured = capfd.readouterr()
        assert status in STATUSES
        statuses[status] += 1
        for text in (*warned, *captured.err.splitlines()):
            check_words(text, MOST_LETTERS + 100)
        assert len(captured.err.splitlines()) <= LINES
        assert "Traceback" not in captured.out + captured.err
        said_why = captured.err.startswith(("conformer-fast", "usage:", "random weights"))
        assert status != 2 or said_why or "not run: " in captured.out  # of all that diff was to compare

    for command, base in files.base.items():
        one([command, *base])
    assert statuses[0] >= 7, statuses
    with memory_within(1000):  # tiny-p16 is exported in some
        every(command_lines(files), 100, one)
    assert statuses[2] > statuses[0] > 0
    tried("command lines", {f"status {status}": count for status, count in statuses.items() if count})
