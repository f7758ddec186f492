"""conformer-fast export-server: a bundle as a model of NVIDIA Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_key, key_of, positive, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the model repository")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: that of the bundle's folder)")
    parser.add_argument("--instances", type=positive, default=1, metavar="N", help="batches run at once on a GPU")
    add_key(parser, "the key that the bundle is signed with")


def run(options: argparse.Namespace) -> int:
    from ..engines.tensorrt.triton_server import write_model

    name = options.name or Path(options.bundle).resolve().name
    folder = write_model(options.bundle, options.output, name, options.instances, key_of(options.key))
    show(options, {"folder": str(folder), "name": name}, str(folder))
    return 0
