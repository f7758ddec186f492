"""What the commands that take a model share: its arguments, and the model that these name."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.create import create_model
from ..checkpoints.dialects import recognize
from ..checkpoints.weights import read_state_dict
from ..datasets.batches import Pictures, images_in
from ..errors import CheckpointError
from ..inference.quantization import Quantization, load_quantization
from ..model.config import PACKAGED, VARIANTS, ConformerConfig
from ..model.reference import Conformer

DEFAULT = "small-p16"
CALIBRATION_IMAGES = 512
KEYWORDS = ("pretrained", "packaged", "random")  # weights that are no file


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        choices=[*VARIANTS, *PACKAGED],
        help=f"default: what the checkpoint in --weights has the sizes of, without one {DEFAULT}",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint; 'mmpretrain' downloads the published one (default), 'packaged' (digits), 'random'",
    )


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration", metavar="DIR|JSON", help="for int8 and fp8: pictures, or what `conformer-fast calibrate` wrote"
    )
    parser.add_argument("--calibration-images", type=positive, default=CALIBRATION_IMAGES, metavar="N")


def calibration_of(options: argparse.Namespace, size: int) -> Quantization | Pictures | None:
    """What was asked for: pictures become inputs of size x size."""
    if options.calibration is None:
        return None
    if Path(options.calibration).is_file():
        return load_quantization(options.calibration)
    return images_in(options.calibration, size, options.calibration_images)


def model_of(options: argparse.Namespace, features_only: bool = False) -> Conformer:
    """The reference model that was asked for. Sets `options.model` and `options.weights` to what was taken; the model
    is None for a checkpoint of sizes that have no name."""
    if options.model is None and options.weights not in (None, *KEYWORDS):
        config = _implied(options.weights)
        options.model = next((name for name, known in (VARIANTS | PACKAGED).items() if _alike(known, config)), None)
        return create_model(config, options.weights, features_only=features_only)
    options.model = options.model or DEFAULT
    if options.weights is None:
        options.weights = "packaged" if options.model in PACKAGED else "pretrained"
    if options.weights == "random":
        torch.manual_seed(0)
        print("random weights: the predictions mean nothing", file=sys.stderr)
        return create_model(options.model, features_only=features_only)
    return create_model(options.model, options.weights, features_only=features_only)


def _implied(path: str) -> ConformerConfig:
    """The sizes of the model whose weights a file holds."""
    state = read_state_dict(path)
    try:
        return recognize(state).config()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _alike(config: ConformerConfig, other: ConformerConfig) -> bool:
    """Whether they differ in the number of classes at most."""
    return replace(config, num_classes=other.num_classes) == other


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def key_of(path: str | None) -> bytes | None:
    """A bundle's HMAC key: all bytes of the file."""
    return Path(path).read_bytes() if path else None
