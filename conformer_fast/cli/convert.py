"""conformer-fast convert: a checkpoint as safetensors, under official or mmpretrain names."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from .arguments import new_file, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", type=new_file, metavar="OUT.safetensors")
    parser.add_argument("--to", choices=["official", "mmpretrain"], default="official", help="whose names to write")


def run(options: argparse.Namespace) -> int:
    found = cf.convert(options.input, options.output, options.to)
    result = {
        "file": options.output,
        "from": found.dialect,
        "to": options.to,
        "tensors": found.matched,
        "left_out": found.ignored,
    }
    text = f"{options.output}: {found.matched} tensors, {found.dialect} -> {options.to}, {found.ignored} keys left out"
    show(options, result, text)
    return 0
