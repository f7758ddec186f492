"""A file server on 127.0.0.1 for downloads, which misbehaves as told."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from warnings import WarningMessage

import pytest

from conformer_fast.checkpoints.download import fetch
from conformer_fast.errors import DownloadError

CONTENT = bytes(range(256)) * 4000
PIECE = 1 << 16  # bytes
NAME = f"conformer-test_20260101-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Site:
    """A file server on 127.0.0.1 that notes the ranges asked for and misbehaves as told."""

    def __init__(self):
        self.ranges = []  # the Range header of each request, None where there was none
        self.content = CONTENT
        self.cut_after = []  # bytes after which the next responses end; whole responses once it is empty
        self.statuses = []  # statuses of the next responses, without content
        self.takes_ranges = True
        self.shift = 0  # sends a range that begins so many bytes late
        self.longest = len(CONTENT)  # of a range that it sends
        self.unit = "bytes"  # of the ranges
        self.redirects = []  # where the next requests are sent
        self.authorizations = []  # of each request
        self.pause = 0.0  # seconds after each PIECE of content
        self.before = 0.0  # seconds before an answer
        self.released = threading.Event()  # content is sent once this is set
        self.released.set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # of those who leave early, as where the disk is full
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        self.authorizations.append(request.headers.get("Authorization"))
        time.sleep(self.before)
        if self.redirects:
            return self.head(request, 302, {"Location": self.redirects.pop(0)})
        if self.statuses:
            return self.head(request, self.statuses.pop(0))
        if request.path != f"/weights/{NAME}":
            return self.head(request, 404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.takes_ranges else 0
        if start >= len(self.content):
            return self.head(request, 416, {"Content-Range": f"bytes */{len(self.content)}"})
        start += self.shift if asked else 0
        body = self.content[start:][: self.longest if asked else None]
        headers = {"Content-Length": len(body)}
        if asked and self.takes_ranges:
            headers["Content-Range"] = f"{self.unit} {start}-{start + len(body) - 1}/{len(self.content)}"
        self.head(request, 206 if "Content-Range" in headers else 200, headers)
        self.released.wait(30)
        body = body[: self.cut_after.pop(0)] if self.cut_after else body
        for start in range(0, len(body), PIECE):
            request.wfile.write(body[start : start + PIECE])
            time.sleep(self.pause)

    def head(self, request, status, headers=()):
        request.send_response(status)
        for name, value in dict(headers).items():
            request.send_header(name, str(value))
        request.end_headers()


def texts(warned: Iterable[WarningMessage]) -> list[str]:
    """What users are told; what Python finds when it collects garbage, a socket that others left, is none of it."""
    return [str(warning.message) for warning in warned if warning.category is UserWarning]


def refusal() -> str:
    """What a download says that must fail."""
    with pytest.raises(DownloadError) as caught:
        fetch("tiny-p16")
    return str(caught.value)
