"""An application on an address of this machine, until a signal ends it."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ..errors import ArgumentError

GRACE = 30  # seconds for what is in flight when a signal ends the server


def bound(host: str, port: int) -> socket.socket:
    """Raises ArgumentError for an address that cannot be had."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()
    except OSError as error:
        found.close()
        raise ArgumentError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error
    return found


class Server(uvicorn.Server):
    """Listens from the start. A first SIGTERM or SIGINT ends it once all is answered; a second one at once."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """port: 0 for any that is free. Raises ArgumentError for an address that cannot be had."""
        config = uvicorn.Config(
            app,
            host,
            port,
            loop="asyncio",  # the same everywhere, whatever else is installed
            http="h11",
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            log_level="warning",
            access_log=False,
        )
        super().__init__(config)
        self._socket = bound(host, port)
        self._socket.listen(config.backlog)
        self.port: int = self._socket.getsockname()[1]

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._socket])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
