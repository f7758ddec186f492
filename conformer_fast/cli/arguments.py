"""What the commands share: arguments, what these name, and how results are printed."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conformer_fast as cf

from ..engines.registry import BACKENDS
from ..errors import ArgumentError, CheckpointError, DatasetError, first_few
from ..model.config import LARGEST_SIDE, PACKAGED, VARIANTS, ConformerConfig, name_of, our_name
from ..model.names import IN_8_BITS, PRECISIONS
from ..storage.regular import read_regular

if TYPE_CHECKING:
    from ..datasets.batches import Pictures
    from ..datasets.dataset import PictureSet

DEFAULT = "small-p16"
CALIBRATION_LIMIT = 512
KEYWORDS = ("pretrained", "packaged", "random")  # weights that are no file

# Options that are paths, of all commands: what is read, and what is written.
INPUTS = (
    *("weights", "bundle", "input", "images", "data", "coco", "labels", "class_names"),
    *("quantization", "calibration", "key", "token_file"),
)
OUTPUTS = ("output", "svg", "resume", "save")

# Options, by who adds them: what a bundle makes superfluous.
MODEL = ("model", "weights")
ENGINE = ("backend", "precision", "quantization", "calibration", "calibration_limit")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=our_name,
        choices=[*VARIANTS, *PACKAGED],
        help=f"default: what the checkpoint in --weights has the sizes of, without one {DEFAULT}",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint; 'pretrained' downloads the published one (default), 'packaged' (digits), 'random'",
    )


def add_models(parser: argparse._ActionsContainer) -> None:
    names = ", ".join([*VARIANTS, *PACKAGED])
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(VARIANTS),
        type=our_name,
        choices=[*VARIANTS, *PACKAGED],
        metavar="MODEL",
        help=f"of {names}, with random weights (default: all but the last)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=["auto", *BACKENDS], help="default: auto")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], help="default: auto")


def add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--quantization", type=file, metavar="FILE", help="for int8 and fp8: what `conformer-fast calibrate` wrote"
    )
    group.add_argument(
        "--calibration", type=folder, metavar="DIR", help="for int8 and fp8: pictures to measure the ranges from"
    )
    parser.add_argument(
        "--calibration-limit",
        type=positive,
        metavar="N",
        help=f"at most so many of these pictures, evenly from all (default {CALIBRATION_LIMIT})",
    )


def add_pictures(parser: argparse.ArgumentParser, example: str) -> None:
    """Picture files, or the one that ships. example: what is on it, and what finds it"""
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        "images",
        nargs="*",
        default=[],
        metavar="IMAGE",
        help="files, folders, patterns such as 'photos/*.jpg', http(s) addresses, or - for the standard input",
    )
    pictures.add_argument("--example", action="store_true", help=f"a picture that ships instead: {example}")


def pictures_of(options: argparse.Namespace, example: str, others: Iterable[str]) -> PictureSet:
    """The pictures that were asked for. example: the name of the one that ships; others: options that do not go with
    it, for which ArgumentError is raised. Raises what `open_named` does."""
    from ..datasets.dataset import open_named

    if options.example:
        refuse(options, others, "--example runs a model that ships")
        return open_named([str(Path(cf.__file__).with_name("data") / example)])
    return open_named(options.images)


def add_bundle(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--bundle", metavar="DIR", help=help)
    add_key(parser, "what the bundle is signed with: a secret, or the PEM file of the public key")


def add_key(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--key", type=file, metavar="FILE", help=help)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=side,
        metavar="PIXELS",
        help="side of the model's input (default: what the weights say, else what such models are trained on)",
    )


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def side(text: str) -> int:
    """Pixels of a picture's side."""
    pixels = positive(text)
    if pixels > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_SIDE} pixels, got {pixels}")
    return pixels


def file(text: str) -> str:
    """The path of a file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return text


def folder(text: str) -> str:
    """The path of a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return text


def new_file(text: str) -> str:
    """The path of a file to write, in a folder that is there."""
    from ..storage.outputs import check_output

    try:
        check_output(text)
    except (ArgumentError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def check_outputs(options: argparse.Namespace) -> None:
    """Raises ArgumentError if what a command is to write takes the place of something that it reads."""
    from ..storage.outputs import check_output

    given = vars(options)
    for file in (given[name] for name in OUTPUTS if name in given and os.path.isfile(given[name] or "")):
        check_output(file, _inputs(given))
        if _holds_pictures(file):
            raise ArgumentError(f"{file} holds pictures, and no command writes over such files; give another name")


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises ArgumentError, which says why and names them, if any of these options was given: it would be ignored."""
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]  # 0 is given
    if given:
        raise ArgumentError(f"{why}; leave out {', '.join(given)}")


def check_pictures(options: argparse.Namespace) -> None:
    """Before a model is had. Raises DatasetError where there is nothing to run it on."""
    from ..datasets.named import may_be_there

    named = [str(path) for name in ("images", "data") for path in _listed(vars(options).get(name))]
    if named and not any(map(may_be_there, named)):
        raise DatasetError(f"there is no file or folder {first_few(named)}; name where the pictures are")


def check_quantization(options: argparse.Namespace, precisions: Collection[str]) -> None:
    """Raises ArgumentError unless 8 bits and how to quantize are given together, or neither. Before any work."""
    in_8_bits = [precision for precision in precisions if precision in IN_8_BITS]
    given = "quantization" if options.quantization else "calibration" if options.calibration else None
    if given and not in_8_bits:
        raise ArgumentError(f"--{given} is for {' and '.join(IN_8_BITS)}; leave it out, or ask for such a precision")
    if in_8_bits and not given:
        raise ArgumentError(
            f"{in_8_bits[0]} takes its ranges from images: give --calibration DIR with some hundred pictures, or "
            f"--quantization FILE, which `conformer-fast calibrate` writes"
        )
    if not options.calibration:
        refuse(options, ("calibration_limit",), "only the pictures of --calibration are counted")
    if options.quantization:
        made_for = cf.Quantization.load(options.quantization).precision
        if set(in_8_bits) != {made_for}:
            other = next(precision for precision in in_8_bits if precision != made_for)
            raise ArgumentError(f"{options.quantization} was made for {made_for}, not for {other}; calibrate again")


def quantization_of(
    options: argparse.Namespace, model: cf.Conformer, size: int | None
) -> cf.Quantization | Pictures | None:
    """What was asked for: a file's content, or pictures as the model's inputs of that size, if another than usual."""
    if options.quantization:
        return cf.Quantization.load(options.quantization)
    if options.calibration:
        from ..model.recipe import input_side

        size = input_side(model.recipe, model.config, size)
        limit = options.calibration_limit or CALIBRATION_LIMIT
        return cf.images_in(options.calibration, size, limit, recipe=model.recipe)
    return None


def model_of(options: argparse.Namespace, features_only: bool = False) -> cf.Conformer:
    """The reference model that was asked for. Sets `options.model` and `options.weights` to what was taken; the model
    is None for a checkpoint of sizes that have no name. Raises what `check_pictures` does, before any work."""
    check_pictures(options)
    if options.model is None and options.weights not in (None, *KEYWORDS):
        config = _implied(options.weights, features_only)
        options.model = name_of(config)
        return cf.create_model(config, options.weights, features_only=features_only)
    options.model = options.model or DEFAULT
    if options.weights is None:
        options.weights = "packaged" if options.model in PACKAGED else "pretrained"
    if options.weights == "random":
        return _random(options.command, options.model, features_only)
    return cf.create_model(options.model, options.weights, features_only=features_only)


def compiled(options: argparse.Namespace, batch: int) -> cf.FastConformer:
    """The model that was asked for, as it was asked for, for up to `batch` images of that size."""
    from ..engines.registry import choose
    from ..model.recipe import input_side

    refuse(options, ("key",), "a key is for a --bundle")
    check_quantization(options, [options.precision or "auto"])
    model = model_of(options)
    size = input_side(model.recipe, model.config, options.size)
    backend = choose(options.backend or "auto", options.precision or "auto").backend
    return cf.compile(
        model,
        backend=backend.for_images((batch, model.config.in_channels, size, size)),
        precision=options.precision or "auto",
        quantization=quantization_of(options, model, size),
    )


def bundled(options: argparse.Namespace) -> cf.FastConformer:
    """The engine of the bundle that was asked for."""
    refuse(options, ENGINE, "--bundle says how its model runs")
    check_pictures(options)
    from ..deploy.load import load_classifier

    return load_classifier(options.bundle, key=key_of(options.key))


def lines_of(path: str) -> list[str]:
    """Names of classes, from a text file."""
    try:
        return read_regular(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path} is not UTF-8 ({error}); write the classes' names as such text") from error


def key_of(path: str | None) -> bytes | None:
    """A bundle's key: all bytes of the file."""
    return read_regular(path) if path else None


def show(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Prints a result: for programs if they asked, else the text for people."""
    if options.json:
        print(json.dumps({"command": options.command, "result": result}))
    elif text:
        print(text)


def row_by_row(options: argparse.Namespace) -> Callable[[Any], None]:
    """Prints each result as a line of its TABLE as soon as it is known; nothing for programs."""
    numbers = itertools.count()

    def show_row(row: Any) -> None:
        if options.json:
            return
        if next(numbers) == 0:
            print(row.TABLE.head)
        print(row, flush=True)

    return show_row


def _random(command: str, name: str, features_only: bool) -> cf.Conformer:
    """Its classes have numbers alone: names would look as if they meant something, in all that is made of it too."""
    import torch

    from ..model.class_names import numbered_labels
    from ..model.recipe import MEAN, STD, Recipe
    from ..model.shapes import usual_side

    torch.manual_seed(0)
    print(f"conformer-fast {command}: random weights: the predictions mean nothing", file=sys.stderr)
    model = cf.create_model(name, features_only=features_only)
    if not features_only:
        labels = tuple(numbered_labels(model.config.num_classes))
        model.recipe = Recipe(usual_side(model.config), labels=labels, mean=MEAN, std=STD)
    return model


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _inputs(given: dict[str, Any]) -> list[Any]:
    """The paths that a command was given to read, and the weights that "pretrained" and "packaged" stand for."""
    from ..storage.paths import cache_root

    named = [path for name in INPUTS for path in _listed(given.get(name))]
    indices = [Path(path) for path in named if str(path).endswith(".safetensors.index.json")]
    if indices:
        from ..checkpoints.safetensors_files import shards_beside

        named += [shard for index in indices for shard in shards_beside(index)]
    return [*named, *cache_root().glob("weights/*"), *Path(cf.__file__).parent.glob("data/*")]


def _holds_pictures(file: str) -> bool:
    """By its ending."""
    from ..datasets.dataset import SHARDS
    from ..datasets.labels import PICTURES

    return Path(file).suffix.lower() in (*PICTURES, *SHARDS)


def _implied(path: str, features_only: bool) -> ConformerConfig:
    """The sizes of the model whose weights a file holds. Raises ArgumentError for a detector's, unless its backbone
    alone is asked for."""
    from ..checkpoints.reading import of_detector, read_checkpoint

    checkpoint = read_checkpoint(path)
    if not features_only and of_detector(checkpoint.state):
        raise ArgumentError(
            f"{path} is a detector's checkpoint; `conformer-fast` detect, evaluate --coco, calibrate and build take it"
        )
    try:
        return checkpoint.found.config(checkpoint.recipe.num_heads)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
