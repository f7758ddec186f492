"""conformer-fast evaluate: accuracy on labeled pictures, or a detector's mAP, beside the reference in the same pass."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from ..errors import ArgumentError
from .arguments import (
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_quantization,
    add_size,
    bundled,
    compiled,
    file,
    folder,
    model_of,
    new_file,
    positive,
    refuse,
    show,
)
from .detectors import detector_of

OF_CLASSIFIERS = ("labels", "model", "size", "batch", "workers", "skip_damaged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="a folder with one folder a class, or of pictures with --labels; or tar or parquet files",
    )
    what.add_argument(
        "--coco",
        type=file,
        metavar="FILE",
        help="COCO's annotations (instances_*.json): evaluate a detector, --weights or --bundle",
    )
    parser.add_argument("--images", type=folder, metavar="DIR", help="the pictures that --coco names")
    parser.add_argument(
        "--labels", type=file, metavar="FILE", help="lines of a picture's name and its class's number or synset"
    )
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "evaluate this engine; with --weights beside its reference")
    add_size(parser)
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures run together (default 32)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode; 0: none of their own")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many pictures, evenly from all")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        help="whether the fp32 reference runs beside it in the same pass (default: if its weights are given)",
    )
    parser.add_argument(
        "--resume", type=new_file, metavar="FILE", help="keeps what is done; if it is there, only the rest is done"
    )
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged pictures out and list them; the status is then 1"
    )


def run(options: argparse.Namespace) -> int:
    if options.coco:
        return _detector(options)
    refuse(options, ("images",), "only --coco names pictures in a folder of their own")
    fast, reference = _from_bundle(options) if options.bundle else _from_model(options)
    found = cf.evaluate(
        fast,
        cf.open_dataset(options.data, options.labels, fast.config.num_classes, fast.recipe.labels),
        reference=reference,
        size=options.size,
        batch=options.batch,
        workers=options.workers,
        limit=options.limit,
        skip_damaged=options.skip_damaged,
        resume=options.resume,
    )
    source = {name: getattr(options, name) for name in ("model", "weights", "bundle")}
    show(options, {**source, **found.to_dict()}, str(found))
    return 1 if found.damaged else 0


def _from_model(options: argparse.Namespace) -> tuple[cf.FastConformer, cf.Conformer | None]:
    """What is evaluated, and its reference if that runs too."""
    from ..evaluation.evaluate import BATCH

    fast = compiled(options, options.batch or BATCH)
    return fast, None if options.reference is False else fast.reference


def _from_bundle(options: argparse.Namespace) -> tuple[cf.FastConformer, cf.Conformer | None]:
    """The same for a bundle."""
    given = options.model is not None or options.weights is not None
    if options.reference is False:
        refuse(options, MODEL, "with --no-reference the bundle runs alone")
    if options.reference and not given:
        raise ArgumentError("a bundle has no reference; give the --weights that it was made from")
    fast = bundled(options)
    return fast, model_of(options) if given else None


def _detector(options: argparse.Namespace) -> int:
    refuse(options, OF_CLASSIFIERS, "--coco evaluates detectors, one picture at a time")
    needed = {"--images": options.images, "--weights or --bundle": options.weights or options.bundle}
    missing = [name for name, given in needed.items() if given is None]
    if missing:
        raise ArgumentError(f"--coco needs the folder of its pictures and a detector; give {' and '.join(missing)}")
    if options.reference and options.weights is None:
        raise ArgumentError("a bundle has no reference; give the --weights that it was made from")
    if options.bundle and options.reference is False:
        refuse(options, ("weights",), "with --no-reference the bundle runs alone")
    fast, reference = detector_of(options), None
    if options.reference is not False:
        reference = fast.reference or (options.weights and cf.create_detector(weights=options.weights))
    found = cf.evaluate_detector(
        fast,
        options.coco,
        options.images,
        reference=reference,
        limit=options.limit,
        resume=options.resume,
    )
    show(options, {"weights": options.weights, "bundle": options.bundle, **found.to_dict()}, str(found))
    return 1 if found.damaged else 0
