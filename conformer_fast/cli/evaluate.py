"""The command that measures accuracy on labeled pictures: conformer-fast evaluate."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..datasets.dataset import open_dataset
from ..deploy.compile import CompiledConformer, compile
from ..deploy.load import LoadedConformer, load
from ..evaluation.evaluate import BATCH, evaluate
from ..model.reference import Conformer
from ..model.shapes import Shapes, usual_side
from .arguments import add_calibration_arguments, add_model_arguments, calibration_of, key_of, model_of, positive


def add_evaluate(commands: Any, engine: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """Adds the command to the command line's; `engine` and `output` have the options that others have too."""
    parser = commands.add_parser("evaluate", parents=[engine, output], help="top-1 and top-5 on labeled pictures")
    parser.set_defaults(run=_evaluate)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|FILE",
        help="a folder with one folder a class, or of pictures with --labels; or tar or parquet files",
    )
    parser.add_argument("--labels", metavar="FILE", help="lines of a picture's name and its class's number or synset")
    add_model_arguments(parser)
    add_calibration_arguments(parser)
    parser.add_argument("--bundle", metavar="DIR", help="evaluate this engine; with --weights beside its reference")
    parser.add_argument("--key", metavar="FILE", help="the key that the bundle is signed with")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the model's input (default 224)")
    parser.add_argument("--batch", type=positive, metavar="N", help=f"pictures run together (default {BATCH})")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode; 0: none of their own")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many pictures, evenly from all")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        help="whether the fp32 reference runs beside it in the same pass (default: if its weights are given)",
    )
    parser.add_argument("--resume", metavar="FILE", help="keeps what is done; if it is there, only the rest is done")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged pictures out and list them; the status is then 1"
    )


def _evaluate(options: argparse.Namespace) -> int:
    fast, reference, size = _from_bundle(options) if options.bundle else _from_model(options)
    found = evaluate(
        fast,
        open_dataset(options.data, options.labels, fast.config.num_classes),
        reference=reference,
        size=size,
        batch=_batch(options, fast),
        workers=options.workers,
        limit=options.limit,
        skip_damaged=options.skip_damaged,
        resume=options.resume,
    )
    if options.json:
        source = {"model": options.model, "weights": options.weights, "bundle": options.bundle}
        print(json.dumps({**source, **found.to_dict()}))
    else:
        print(found)
    return 1 if found.damaged else 0


def _from_model(options: argparse.Namespace) -> tuple[CompiledConformer, Conformer | None, int]:
    """What is evaluated, its reference if that runs too, and the side of the input."""
    model = model_of(options)
    size = options.size or usual_side(model.config)
    batch = options.batch or BATCH
    fast = compile(
        model,
        backend=options.backend,
        precision=options.precision,
        profile=Shapes((1, batch, batch), (size,) * 3, (size,) * 3) if options.backend == "tensorrt" else None,
        calibration=calibration_of(options, size),
    )
    return fast, None if options.reference is False else fast.reference, size


def _from_bundle(options: argparse.Namespace) -> tuple[LoadedConformer, Conformer | None, int]:
    """The same for a bundle."""
    chosen = [name for name in ("backend", "precision", "calibration") if getattr(options, name) not in (None, "auto")]
    if chosen:
        raise ValueError(f"--bundle says how its model runs; leave out {', '.join(f'--{name}' for name in chosen)}")
    fast = load(options.bundle, key=key_of(options.key))
    given = options.model is not None or options.weights is not None
    if options.reference and not given:
        raise ValueError("a bundle has no reference; give the --weights that it was made from")
    reference = model_of(options) if given and options.reference is not False else None
    profiles = fast.manifest.profiles
    return fast, reference, options.size or (profiles[0].height[1] if profiles else usual_side(fast.config))


def _batch(options: argparse.Namespace, fast: CompiledConformer | LoadedConformer) -> int:
    """What was asked for; else the usual one, or what the engine takes."""
    profiles = fast.manifest.profiles if isinstance(fast, LoadedConformer) else ()
    return options.batch or min([BATCH, *(profile.batch[2] for profile in profiles[:1])])
