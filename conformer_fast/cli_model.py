"""What the commands that take a model share: its arguments, and the model that these name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .config import BUNDLED, VARIANTS
from .model import Conformer, create_model


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="small-p16", choices=[*VARIANTS, *BUNDLED])
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint; 'mmpretrain' downloads the published one (default), 'bundled' (digits), 'random'",
    )


def model_of(options: argparse.Namespace, features_only: bool = False) -> Conformer:
    """The reference model that was asked for. Sets `options.weights` to what was taken."""
    if options.weights is None:
        options.weights = "bundled" if options.model in BUNDLED else "mmpretrain"
    if options.weights == "random":
        torch.manual_seed(0)
        print("random weights: the predictions mean nothing", file=sys.stderr)
        return create_model(options.model, features_only=features_only)
    return create_model(options.model, options.weights, features_only=features_only)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def key_of(path: str | None) -> bytes | None:
    """A bundle's HMAC key: all bytes of the file."""
    return Path(path).read_bytes() if path else None
