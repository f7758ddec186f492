"""conformer-fast export-server: a bundle as a model of NVIDIA Triton Inference Server."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from .arguments import add_key, key_of, positive, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the model repository")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: that of the bundle's folder)")
    parser.add_argument("--instances", type=positive, default=1, metavar="N", help="batches run at once on a GPU")
    add_key(parser, "what the bundle is signed with: a secret, or the PEM file of the public key")


def run(options: argparse.Namespace) -> int:
    folder = cf.export_server(
        options.bundle, options.output, name=options.name, instances=options.instances, key=key_of(options.key)
    )
    show(options, {"folder": str(folder), "name": folder.name}, str(folder))
    return 0
