"""What a server is asked to be, refused in a sentence before any work."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import torch

from ..errors import ArgumentError, BackendError, shown, whole

if TYPE_CHECKING:
    from ..deploy.fast_conformer import FastConformer
    from .service import Options

LAST_PORT = 65535


def check_port(port: int, least: int) -> None:
    if whole("port", port, least) > LAST_PORT:
        raise ArgumentError(f"port must be at most {LAST_PORT}, got {port}")


def address_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def options_of(
    max_batch: int,
    max_delay_ms: float,
    queue: int,
    workers: int,
    size: int | None,
    max_bytes: int,
    max_megapixels: float,
    token: str | None,
) -> Options:
    """These, as `serve` describes them. Raises ArgumentError for one that cannot be, BackendError where the packages of
    the extra `serve` are missing."""
    for name, value in {"max_batch": max_batch, "queue": queue, "workers": workers, "max_bytes": max_bytes}.items():
        whole(name, value)
    for name, number in {"max_delay_ms": max_delay_ms, "max_megapixels": max_megapixels}.items():
        if not isinstance(number, int | float) or not 0 <= number < inf:
            raise ArgumentError(f"{name} must be a number, at least 0, got {shown(repr(number))}")
    if token is not None and not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
        raise ArgumentError("the token must be of printable ASCII letters, and at least one; it is not shown here")
    try:
        from .app import Options
        from .reading import Limits
    except ImportError as error:
        raise BackendError(
            f'a server needs fastapi, uvicorn and prometheus-client ({error}): pip install "conformer-fast[serve]"'
        ) from error
    limits = Limits(max_bytes, max_megapixels, min(queue, Limits.pictures))
    return Options(max_batch, max_delay_ms, queue, workers, size, token=token, limits=limits)


def check_runs(model: FastConformer, size: int | None) -> None:
    """Raises what its engine raises for an image of this side."""
    side = model.input_side(size)
    model.run(torch.zeros(1, model.config.in_channels, side, side, device=model.device))
