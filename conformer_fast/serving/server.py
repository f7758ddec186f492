"""An application on an address of this machine, until a signal ends it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ArgumentError

BACKLOG = 128  # connections that wait to be taken
FIRST_REQUEST = 30  # seconds from a connection to the end of its first request's head
GRACE = 30  # seconds for what is in flight when a signal ends the server


def bound(host: str, port: int) -> socket.socket:
    """Raises ArgumentError for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # by which asyncio knows to send at once
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ArgumentError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error
    return found


class _Connection(H11Protocol):
    """Closed if no request comes: idle ones would take all that the process may open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn types it wider
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Listens from the start. A first SIGTERM or SIGINT ends it once all is answered; a second one at once."""

    def __init__(self, app: ASGIApp, host: str, port: int, listening: Callable[[], None] | None = None) -> None:
        """port:   0 for any that is free
        listening: called once requests are answered, and signals end it

        Raises ArgumentError for an address that cannot be had.
        """
        config = uvicorn.Config(
            app,
            host,
            port,
            loop="asyncio",  # the same everywhere, whatever else is installed
            http=_Connection,
            backlog=BACKLOG,
            ws="none",
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            log_level="error",  # below it, every client's mistake
            access_log=False,
        )
        super().__init__(config)
        self._socket = bound(host, port)
        self._listening = listening
        self.port: int = self._socket.getsockname()[1]

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._listening:
            self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
