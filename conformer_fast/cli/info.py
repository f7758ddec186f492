"""conformer-fast info: what this installation can do here."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import conformer_fast as cf

from .arguments import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    found = cf.info()
    show(options, asdict(found), str(found))
    return 0
