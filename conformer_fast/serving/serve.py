"""serve(): a model behind an address, over HTTP."""

from __future__ import annotations

from collections.abc import Callable

from ..deploy.fast_conformer import FastConformer
from ..errors import ArgumentTypeError, a_function, shown
from .checks import address_of, check_place, check_runs, options_of


def serve(
    model: FastConformer,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 32,
    max_delay_ms: float = 5.0,
    queue: int = 256,
    workers: int = 1,
    size: int | None = None,
    max_bytes: int = 25_000_000,
    max_megapixels: float = 80.0,
    token: str | None = None,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Answers over HTTP until SIGTERM or SIGINT, then finishes what is in flight within 30 s: docs/serving.md.

    model:          compiled or loaded, that reads pictures and returns scores
    host, port:     loopback, which this machine alone reaches; port 0: any that is free
    max_batch:      pictures that run together
    max_delay_ms:   that a free worker waits for more of them while another one runs; it never waits else
    queue:          pictures in the server at a time; what is beyond is answered with 503 at once
    workers:        batches that run at a time
    size:           side of the model's input in pixels; default: what the engine is tuned for, or the model trained on
    max_bytes:      of a picture's file; max_megapixels: of a picture
    token:          that clients must send, "Authorization: Bearer ..."; None: anybody may ask
    listening:      called with the address once it is there

    Raises ArgumentError for a number that is not positive, an address that cannot be had, and a model that cannot be
    served; what its engine raises; BackendError where the packages of the extra `serve` are missing.
    """
    if not isinstance(model, FastConformer):
        raise ArgumentTypeError(f"serve needs a classifier that compile or load returned, got {shown(repr(model))}")
    check_place(host, port, 0)
    if listening is not None:
        a_function("listening", listening)
    options = options_of(max_batch, max_delay_ms, queue, workers, size, max_bytes, max_megapixels, token)
    from .app import create_app
    from .server import Server

    app = create_app(model, options)
    check_runs(model, size)  # before it listens

    def told() -> None:
        if listening:
            listening(address_of(host, server.port))

    server = Server(app, host, port, told)
    server.run()
