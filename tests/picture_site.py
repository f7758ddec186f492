"""A server of pictures on 127.0.0.1 that answers as told, and names that lead to it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PUBLIC = "93.184.216.34"  # taken for the site's by `names_of`

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """answers: of its paths; asked: what it was asked for, with the headers"""

    def __init__(self, certificate: Path | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                site.answers[self.path](self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # of those who leave early
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def sends(self, path: str, content: bytes, status: int = 200, **headers: object) -> None:
        """headers: others than the length, by their names in Python; None leaves one out"""
        given = {"Content_Length": len(content), **headers}

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in given.items():
                if value is not None:
                    request.send_header(name.replace("_", "-"), str(value))
            request.end_headers()
            request.wfile.write(content)

        self.answers[path] = answer

    def redirects(self, path: str, target: str, status: int = 302) -> None:
        self.sends(path, b"", status, Location=target)


@contextmanager
def site(certificate: Path | None = None) -> Iterator[Site]:
    found = Site(certificate)
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


def names_of(monkeypatch, found: Site, **names: str | list[str]) -> list[str]:
    """Makes host names, `a_test` for a.test, lead to these IP addresses: always to one, or one after another at each
    time that they are resolved. PUBLIC is the site's, on any port. Returns where is connected to."""
    resolve, connect, connected = socket.getaddrinfo, socket.create_connection, []
    left = {name.replace("_", "."): ips for name, ips in names.items()}

    def resolved(host, port, *more, **others):
        ips = left.get(host, host)
        return resolve(ips.pop(0) if isinstance(ips, list) else ips, port, *more, **others)

    def connecting(place, **others):
        connected.append(place[0])
        return connect(("127.0.0.1", found.port) if place[0] == PUBLIC else place, **others)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket, "create_connection", connecting)
    return connected
