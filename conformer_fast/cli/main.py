"""The command line. `conformer-fast --help` lists the commands; each is a module of this package.

A command's module has `add_arguments(parser)` and `run(options) -> int`, the exit status. Nothing here imports PyTorch
before a command needs it, so that what needs none answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from types import ModuleType
from typing import NoReturn

from ..errors import ConformerFastError, is_of_memory, shown
from ..preprocessing.pillow_warnings import ignore_damaged_metadata
from ..version import __version__
from .asked import asks_for_json

COMMANDS = {
    "predict": "classify images",
    "detect": "find objects in images, with boxes and masks",
    "batch": "classify a folder, tar or parquet files into a file of results",
    "serve": "answer over HTTP: classes of pictures",
    "evaluate": "top-1 and top-5 on labeled pictures, or a detector's mAP",
    "bench": "time the compiled model against eager PyTorch",
    "tune": "measure the kernels' tiles on this GPU; takes minutes",
    "diff": "compare implementations inside the network",
    "calibrate": "measure how a model is best put in 8 bits, and what that costs",
    "export": "write the typed ONNX graph",
    "build": "build a TensorRT engine, as a bundle",
    "export-server": "add a bundle to a model repository of NVIDIA Triton Inference Server",
    "info": "what this installation can do here, and why",
    "convert": "rewrite a checkpoint as safetensors",
    "cache": "list or clear the built engines",
}
MOST_LETTERS = 2000  # of a message
NO_VALUE = re.compile("(-[a-z]=?|--[a-z-]+=)--")  # Python's parser, before 3.13, takes it for an empty list
STATUSES = {
    0: "all was done",
    1: "part of the input failed, or what was compared is over its bound",
    2: "nothing could be done: wrong options, or something is missing or does not fit",
    130: "interrupted by Ctrl-C",
}


class UsageError(Exception):
    """Arguments that are none of a command's. usage: how it is called."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status, one of STATUSES."""
    with warnings.catch_warnings():
        ignore_damaged_metadata()
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    as_json = asks_for_json(arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are no text, and labels where only ASCII is
    format_of_others, warnings.formatwarning = warnings.formatwarning, _each_once()
    try:
        options = _options(command, arguments)
        _check_outputs(options)
        status = _module(options.command).run(options)
        if sys.stdout:
            sys.stdout.flush()  # here, where it can be told if nobody reads it
        return status
    except BrokenPipeError:  # whoever read the output has gone; nothing more can be said to him
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in it is written when Python ends
        return 2
    except KeyboardInterrupt as error:
        return _failed(command, error, "interrupted", as_json, status=130)
    except UsageError as error:
        print(error.usage, end="", file=sys.stderr)
        return _failed(command, error, str(error), as_json)
    except Exception as error:
        if not _expected(error):
            raise
        return _failed(command, error, str(error), as_json)
    finally:
        warnings.formatwarning = format_of_others


def _each_once() -> Callable[..., str]:
    """What is printed of a warning: one line, without the place in the code that gave it; nothing the second time,
    wherever it comes from."""
    said = set()

    def line(message: Warning | str, *where: object, **more: object) -> str:
        text = f"conformer-fast: {_line(str(message))}\n"
        new = text not in said
        said.add(text)
        return text if new else ""

    return line


def _line(message: str) -> str:
    """On one line, whatever the arguments or files that it quotes have in them."""
    return shown(" ".join(message.splitlines()), MOST_LETTERS)


def _failed(command: str | None, error: BaseException, message: str, as_json: bool, status: int = 2) -> int:
    if as_json:
        with suppress(OSError):  # which may be the error
            failure = {"command": command, "error": {"type": type(error).__name__, "message": message}}
            print(json.dumps(failure), flush=True)
    print(f"conformer-fast{f' {command}' if command in COMMANDS else ''}: {_line(message)}", file=sys.stderr)
    return status


def _expected(error: Exception) -> bool:
    """Whether it tells the user something; any other is a fault of ours, and its traceback tells more."""
    return is_of_memory(error) or isinstance(error, ConformerFastError | OSError)


def _options(chosen: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Of the command that was chosen. Raises UsageError."""
    width = max(len(str(status)) for status in STATUSES)
    statuses = [f"  {status:<{width}}  {meaning}" for status, meaning in STATUSES.items()]
    parser = _Parser(
        "conformer-fast",
        description="Fast, verified inference for the vision Conformer.",
        epilog="\n".join(["exit status:", *statuses]),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    usage = parser.format_usage
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name == chosen:
            _module(name).add_arguments(command)
            command.add_argument("--json", action="store_true", help="print JSON for a program to read")
            usage = command.format_usage
    for argument in filter(NO_VALUE.fullmatch, arguments):
        raise UsageError(f"{argument}: an option cannot have the value --", usage())
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", usage())
    return options


def _check_outputs(options: argparse.Namespace) -> None:
    """Before any work. Raises ArgumentError."""
    from .arguments import check_outputs

    check_outputs(options)


def _module(command: str) -> ModuleType:
    return import_module(f".{command.replace('-', '_')}", __package__)


if __name__ == "__main__":
    sys.exit(main())
