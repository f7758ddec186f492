"""conformer-fast convert: a checkpoint as safetensors, under official or mmpretrain names, with what it is for."""

from __future__ import annotations

import argparse
from dataclasses import fields

import conformer_fast as cf

from .arguments import file, lines_of, new_file, positive, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", type=new_file, metavar="OUT.safetensors", help="written over if it is there")
    parser.add_argument("--to", choices=["official", "mmpretrain"], default="official", help="whose names to write")
    recipe = parser.add_argument_group("what the file is to say of the model (default: what the input says)")
    recipe.add_argument("--size", type=positive, metavar="PIXELS", help="side of the images it was trained on")
    recipe.add_argument("--num-heads", type=positive, metavar="N", help="attention heads of a block")
    recipe.add_argument("--labels", type=file, metavar="FILE", help="names of the classes, one a line, in order")
    recipe.add_argument("--mean", type=_numbers, metavar="R,G,B", help="of pixels from 0 to 1 (ImageNet's if not said)")
    recipe.add_argument("--std", type=_numbers, metavar="R,G,B", help="the standard deviation, with --mean")


def run(options: argparse.Namespace) -> int:
    given = {field.name: getattr(options, field.name) for field in fields(cf.Recipe)}
    if options.labels:
        given["labels"] = lines_of(options.labels)
    found = cf.convert(options.input, options.output, options.to, recipe=cf.Recipe(**given))
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


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be numbers between commas, such as 0.5,0.5,0.5; got {text!r}"
        ) from error
