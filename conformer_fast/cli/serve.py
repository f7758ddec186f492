"""conformer-fast serve: a model behind an address of this machine."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import conformer_fast as cf

from ..errors import ArgumentError
from ..storage.regular import read_regular
from .arguments import (
    ENGINE,
    MODEL,
    add_bundle,
    add_engine,
    add_model,
    add_quantization,
    add_size,
    bundled,
    compiled,
    file,
    key_of,
    positive,
    refuse,
    show,
)

SHARED = ("max_batch", "max_delay_ms", "queue", "workers", "size", "max_bytes", "max_megapixels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "serve this engine instead of a model")
    add_model(parser)
    add_engine(parser)
    add_quantization(parser)
    add_size(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, which this machine alone reaches")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    parser.add_argument(
        "--max-batch", type=positive, default=32, metavar="N", help="pictures run together (default 32)"
    )
    parser.add_argument(
        "--max-delay-ms",
        type=float,
        default=5.0,
        metavar="MS",
        help="that a free worker waits for more pictures while another one runs (default 5)",
    )
    parser.add_argument(
        "--queue", type=positive, default=256, metavar="N", help="pictures in the server at a time (default 256)"
    )
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="batches that run at a time (default 1)"
    )
    parser.add_argument(
        "--max-bytes", type=positive, default=25_000_000, metavar="N", help="of a picture (default 25,000,000)"
    )
    parser.add_argument("--max-megapixels", type=positive, default=80, metavar="N", help="of a picture (default 80)")
    parser.add_argument("--token-file", type=file, metavar="FILE", help="asks clients for the token in this file")
    ray = parser.add_argument_group("many machines")
    ray.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="replicas on this cluster of Ray, such as 10.0.0.1:6379; without ADDRESS on this machine, by its own Ray",
    )
    ray.add_argument(
        "--replicas", type=bounds, metavar="N[:M]", help="so many, or from N to M by the load; with --ray (default 1)"
    )
    ray.add_argument(
        "--cores", type=positive, metavar="N", help="of a replica; with --ray (default: PyTorch's; 1 beside a GPU)"
    )


def bounds(text: str) -> int | tuple[int, int]:
    """Of the number of replicas."""
    fewest, colon, most = text.partition(":")
    return (positive(fewest), positive(most)) if colon else positive(fewest)


def run(options: argparse.Namespace) -> int:
    if options.bundle:
        refuse(options, MODEL, "--bundle says which model runs")
    token = read_regular(options.token_file).decode(errors="replace").strip() if options.token_file else None
    given = {name: getattr(options, name) for name in SHARED} | {"token": token}
    if options.ray:
        return _run_on_ray(options, given)
    refuse(options, ("replicas", "cores"), "only --ray has replicas")
    fast = bundled(options) if options.bundle else compiled(options, options.max_batch)
    cf.serve(fast, host=options.host, port=options.port, **given, listening=partial(_listening, options, fast.reason))
    return 0


def _run_on_ray(options: argparse.Namespace, given: dict[str, Any]) -> int:
    from ..serving.on_ray import serve_on_ray

    if not options.bundle:
        raise ArgumentError(
            "--ray needs --bundle DIR, a path that every machine has; `conformer-fast build` or "
            "FastConformer.save writes it"
        )
    refuse(options, ENGINE, "--bundle says how its model runs")
    app = cf.serve_app(
        options.bundle, key=key_of(options.key), replicas=options.replicas or 1, cores=options.cores, **given
    )
    what = f"replicas of {options.bundle}, by Ray Serve"
    serve_on_ray(app, options.ray, options.host, options.port, partial(_listening, options, what))
    return 0


def _listening(options: argparse.Namespace, what: str, address: str) -> None:
    show(options, {"address": address, "engine": what}, f"{what}\n{address}")
    sys.stdout.flush()
