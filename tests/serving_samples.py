"""A server in this process, and a client of it."""

import http.client
import io
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
from PIL import Image

from conformer_fast.serving.app import Options, create_app
from conformer_fast.serving.server import Server

PNG = {"content-type": "image/png"}


def picture(seed=0, side=40, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def eventually(happened, seconds=30):
    """Waits for it."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"it did not happen in {seconds} s"
        time.sleep(0.02)


class Client:
    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.ask("GET", path, headers=headers)

    def predict(self, body, headers=PNG, query=""):
        status, _, answer = self.ask("POST", f"/v1/predict{query}", body, headers)
        return status, json.loads(answer)

    def counted(self, name):
        """The value of a line of /metrics."""
        lines = self.get("/metrics")[2].decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


@contextmanager
def running(model, **options):
    server = Server(create_app(model, Options(**options)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    client = Client(server.port)
    try:
        eventually(lambda: client.get("/v2/health/ready")[0] == 200)
        yield client
    finally:
        server.should_exit = True
        thread.join(60)
