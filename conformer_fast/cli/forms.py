"""How what is found in pictures is printed: as text, as one JSON object, or as rows of JSON lines or CSV."""

from __future__ import annotations

import argparse
import io
from typing import Any, BinaryIO, cast

from ..errors import ArgumentError
from ..progress import Bar

FORMS = ("text", "json", "jsonl", "csv")


def add_form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=FORMS,
        help="of what is printed: text (default), json, the same as --json, or rows that come one by one, jsonl or csv",
    )


def form_of(options: argparse.Namespace) -> str:
    """One of FORMS. Sets `options.json` to whether it is JSON. Raises ArgumentError if two were asked for."""
    form = options.format or ("json" if options.json else "text")
    if options.json and form != "json":
        raise ArgumentError(f"--json is --format json, and --format {form} was given too; leave one out")
    options.json = form == "json"
    return form


def say(text: str) -> None:
    """Prints a line at once, where no bar is."""
    with Bar.external_write_mode():
        print(text, flush=True)


def printed() -> BinaryIO:
    """The standard output as a file of rows: each is printed at once, where no bar is."""
    return cast(BinaryIO, _Printed())


class _Printed(io.BufferedIOBase):
    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        text = bytes(content).decode()
        with Bar.external_write_mode():
            print(text, end="", flush=True)
        return memoryview(content).nbytes
