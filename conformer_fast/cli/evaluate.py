"""conformer-fast evaluate: accuracy on labeled pictures, beside the reference in the same pass."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from ..errors import ArgumentError
from .arguments import (
    ENGINE,
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_quantization,
    add_size,
    check_quantization,
    compiled,
    how,
    key_of,
    model_of,
    positive,
    refuse,
    show,
)

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|FILE",
        help="a folder with one folder a class, or of pictures with --labels; or tar or parquet files",
    )
    parser.add_argument("--labels", metavar="FILE", help="lines of a picture's name and its class's number or synset")
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "evaluate this engine; with --weights beside its reference")
    add_size(parser)
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


def run(options: argparse.Namespace) -> int:
    from ..datasets.dataset import open_dataset

    fast, reference, size = _from_bundle(options) if options.bundle else _from_model(options)
    found = cf.evaluate(
        fast,
        open_dataset(options.data, options.labels, fast.config.num_classes),
        reference=reference,
        size=size,
        batch=options.batch or min([BATCH, *(shapes.batch[2] for shapes in fast.shapes[:1])]),
        workers=options.workers,
        limit=options.limit,
        skip_damaged=options.skip_damaged,
        resume=options.resume,
    )
    source = {name: getattr(options, name) for name in ("model", "weights", "bundle")}
    show(options, {**source, **found.to_dict(), "run": how(fast)}, str(found))
    return 1 if found.damaged else 0


def _from_model(options: argparse.Namespace) -> tuple[cf.FastConformer, cf.Conformer | None, int]:
    """What is evaluated, its reference if that runs too, and the side of the input."""
    from ..model.shapes import usual_side

    refuse(options, ("key",), "a key is for a --bundle")
    check_quantization(options, [options.precision])
    model = model_of(options)
    size = options.size or usual_side(model.config)
    fast = compiled(model, options, size, options.batch or BATCH)
    return fast, None if options.reference is False else fast.reference, size


def _from_bundle(options: argparse.Namespace) -> tuple[cf.FastConformer, cf.Conformer | None, int]:
    """The same for a bundle."""
    from ..model.shapes import usual_side

    refuse(options, ENGINE, "--bundle says how its model runs")
    given = options.model is not None or options.weights is not None
    if options.reference is False:
        refuse(options, MODEL, "with --no-reference the bundle runs alone")
    if options.reference and not given:
        raise ArgumentError("a bundle has no reference; give the --weights that it was made from")
    fast = cf.load(options.bundle, key=key_of(options.key))
    side = fast.shapes[0].height[1] if fast.shapes else usual_side(fast.config)
    return fast, model_of(options) if given else None, options.size or side
