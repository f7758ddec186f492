"""`conformer-fast serve` as a process: its address, its signals, what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serving_samples import picture

import conformer_fast as cf
from conformer_fast import serving
from conformer_fast.serving.server import Server

COMMAND = (sys.executable, "-m", "conformer_fast.cli", "serve", "--model", "digits", "--backend", "reference")


def start(*options):
    """The process and its address, once it listens."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--max-batch", "2", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read())
    return process, json.loads(line)["result"]["address"]


def ask(address, path, data=None, **headers):
    request = urllib.request.Request(address + path, data, {"content-type": "image/png", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_all_is_answered(number):
    process, address = start()
    try:
        assert ask(address, "/v2/health/live") == {"live": True}
        assert len(ask(address, "/v1/predict?topk=3", picture())["predictions"][0]["top"]) == 3
        process.send_signal(number)
        assert process.wait(40) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.slow
def test_a_signal_as_soon_as_it_listens():
    process, _ = start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once():
    process, address = start()
    try:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as unfinished:
            unfinished.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
            ask(address, "/v2/health/live")
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert process.poll() is None  # it waits for the rest
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_a_token_from_a_file(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    process, address = start("--token-file", tmp_path / "token")
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(address, "/v1/predict", picture())
        assert ask(address, "/v1/predict", picture(), authorization="Bearer secret")["predictions"]
    finally:
        process.kill()


def test_an_address_that_is_taken_is_named(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(cf.ArgumentError, match=rf"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            cf.serve(model, port=port)


WRONG = {
    "max_batch": (0, "max_batch must be a whole number, at least 1, got 0"),
    "queue": (1.5, "queue must be a whole number, at least 1, got 1.5"),
    "workers": ("2", "workers must be a whole number, at least 1, got '2'"),
    "max_bytes": (0, "max_bytes must be a whole number, at least 1, got 0"),
    "port": (65536, "port must be at most 65535, got 65536"),
    "size": (0, "at least 1, got 0"),
    "max_delay_ms": (float("nan"), "max_delay_ms must be a number from 0 to 60000, got nan"),
    "max_megapixels": (179, "max_megapixels must be a number from 0 to 178, got 179"),
    "listening": (5, "listening must be a function, such as print, got 5"),
    "token": ("", "the token must be of printable ASCII letters, and at least one; it is not shown here"),
    "host": ("not an address", "cannot listen on not an address port 8000"),
}


@pytest.mark.parametrize("host", ["", None, b"127.0.0.1", "a\0b", "\ud800"])
def test_a_host_must_be_named(host, model):
    """Sockets take "" for every address of the machine."""
    with pytest.raises(cf.ArgumentError, match="host must be a name or an address"):
        cf.serve(model, host=host)


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(name, model):
    value, message = WRONG[name]
    with pytest.raises(cf.ArgumentError, match=re.escape(message)):
        cf.serve(model, **{name: value})


def test_a_model_without_scores_is_refused():
    model = cf.create_model("digits", weights="packaged", features_only=True)
    with pytest.raises(cf.ArgumentError, match="predict needs conv_logits"):
        cf.serve(cf.compile(model, backend="reference"), port=0)


def test_an_engine_that_fails_ends_it_before_it_listens(model, monkeypatch):
    def fails(self, images):
        raise cf.EngineError("no engine")

    monkeypatch.setattr(type(model), "run", fails)
    with pytest.raises(cf.EngineError, match="no engine"):
        cf.serve(model, port=0, listening=lambda address: pytest.fail("it listens"))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_without_its_packages_it_says_what_to_install(package, model, monkeypatch):
    ours = [name for name in sys.modules if name.startswith("conformer_fast.serving.") and "checks" not in name]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(serving, name.rpartition(".")[2])  # comes back too, or later tests would change another one
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(cf.BackendError, match=r'pip install "conformer-fast\[serve\]"'):
        cf.serve(model, port=0, listening=lambda address: pytest.fail("it listens"))


def served_in_a_child(app):
    """The status of the child of a fork that serves one picture, and of its server."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        server = Server(app, "127.0.0.1", 0)
        os.write(writing, f"{server.port}\n".encode())
        server.run()
        os._exit(0)
    try:
        with os.fdopen(reading) as lines:
            address = f"http://127.0.0.1:{int(lines.readline())}"
            found = ask(address, "/v1/predict", picture())
        os.kill(child, signal.SIGTERM)
        return found, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(writing)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_a_child_of_a_server_that_has_run_serves(backend):
    """As of `gunicorn --preload`."""
    script = f"""
        import torch, test_serve, conformer_fast as cf
        from conformer_fast.serving.app import Options, create_app
        fast = cf.compile(cf.create_model("digits", weights="packaged"), backend="{backend}")
        fast(torch.zeros(2, 3, 32, 32))
        app = create_app(fast, Options(max_batch=2))
        for _ in range(2):
            found, status = test_serve.served_in_a_child(app)
            print(len(found["predictions"]), status)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "1 0\n1 0\n", done.stderr
