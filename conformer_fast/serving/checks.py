"""What a server is asked to be, refused in a sentence before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import ArgumentError, ArgumentTypeError, BackendError, shown, whole

if TYPE_CHECKING:
    from ..deploy.fast_conformer import FastConformer
    from .service import Options

LAST_PORT = 65535
LONGEST = 60_000  # ms
LARGEST = 178  # megapixels, beyond which Pillow decodes nothing


def check_place(host: str, port: int, least: int) -> None:
    """Raises ArgumentError for what is no name of a host, "" of which means all of them, and no port."""
    if not isinstance(host, str) or not host or not host.isascii() or not host.isprintable():
        raise ArgumentTypeError(f"host must be a name or an address, such as '127.0.0.1', got {shown(repr(host))}")
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
    for name, number, most in (("max_delay_ms", max_delay_ms, LONGEST), ("max_megapixels", max_megapixels, LARGEST)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
            raise ArgumentError(f"{name} must be a number from 0 to {most}, got {shown(repr(number))}")
    if token is not None and not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
        raise ArgumentError("the token must be of printable ASCII letters, and at least one; it is not shown here")
    try:
        import python_multipart  # noqa: F401  # Starlette asks for it at the first form alone

        from .app import Options
        from .reading import Limits
        from .server import Server  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"a server needs fastapi, uvicorn, prometheus-client and python-multipart ({error}): "
            f'pip install "conformer-fast[serve]"'
        ) from error
    limits = Limits(max_bytes, max_megapixels, min(queue, Limits.pictures))
    return Options(max_batch, max_delay_ms, queue, workers, size, token=token, limits=limits)


def check_runs(model: FastConformer, size: int | None) -> None:
    """Raises what its engine raises for an image of this side."""
    side = model.input_side(size)
    model.run(torch.zeros(1, model.config.in_channels, side, side, device=model.device))
