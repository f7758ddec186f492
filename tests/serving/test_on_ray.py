"""Replicas by Ray Serve: the same answers as one machine, a replica that dies, an engine that fails, the end."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from by_ray import by_ray
from serving_samples import Client, eventually, picture, running

import conformer_fast as cf
from conformer_fast.cli import main
from conformer_fast.serving import on_ray

REPLICA = "ray::ServeReplica"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("ray") / "digits"
    fast = cf.compile(cf.create_model("digits", weights="packaged"), backend="openvino", precision="fp32")
    fast(torch.zeros(1, 3, 32, 32))
    return fast.save(folder)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def processes(session):
    """Of a session: the process and its name."""
    listed = subprocess.run(["ps", "-wweo", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return {int(row[0]): row[3] for row in rows if int(row[1]) == session and not row[2].startswith("Z")}


def replicas(session):
    return {number for number, name in processes(session).items() if name.startswith(REPLICA)}


@contextmanager
def started(*command):
    """The process of a session of its own, a client of it, and the folder where Ray writes."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path: Ray makes sockets below it
    env = {
        **os.environ,
        "HOME": str(folder),  # where Ray keeps its token
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *map(str, command), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
            start_new_session=True,
        )
        try:
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}" in line, line + (folder / "errors").read_text()
            yield process, Client(port), folder
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                for number in processes(process.pid):
                    os.kill(number, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)


def command(bundle, *options):
    serve = ["-m", "conformer_fast.cli", "serve", "--ray", "--bundle", bundle, "--cores", 1, "--max-batch", 4, "--json"]
    return [*serve, *options]


@pytest.fixture(scope="module")
def served(bundle):
    with started(*command(bundle, "--replicas", 2, "--max-bytes", 1_000_000)) as found:
        yield found


def without_times(answer):
    for prediction in answer["predictions"]:
        del prediction["milliseconds"]
    del answer["milliseconds"]
    return answer


@pytest.mark.slow
@by_ray
def test_a_picture_is_answered_as_on_one_machine(served, bundle):
    _, client, _ = served
    with running(cf.load(bundle, threads=1), max_batch=4) as alone:
        for seed in range(4):
            (status, there), (_, here) = client.predict(picture(seed)), alone.predict(picture(seed))
            assert status == 200
            assert without_times(there) == without_times(here)


@pytest.mark.slow
@by_ray
def test_the_kserve_protocol_and_health(served):
    _, client, _ = served
    images = {"name": "images", "shape": [2, 3, 32, 32], "datatype": "FP32", "data": [0.5] * (2 * 3 * 32 * 32)}
    status, _, body = client.ask("POST", "/v2/models/conformer/infer", json.dumps({"inputs": [images]}))
    assert status == 200
    assert {output["name"]: output["shape"] for output in json.loads(body)["outputs"]} == {
        "conv_logits": [2, 10],
        "trans_logits": [2, 10],
    }
    for state in ("live", "ready"):
        status, _, body = client.get(f"/v2/health/{state}")
        assert (status, json.loads(body)) == (200, {state: True})


@pytest.mark.slow
@by_ray
def test_a_body_over_the_limit_is_refused_before_it_has_come(served):
    _, client, _ = served
    status, answer = client.predict(b"x" * 1_000_001)
    assert (status, answer) == (413, {"error": "the request has over 1,000,000 bytes, the most that is allowed"})
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as unfinished:
        unfinished.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 900000000\r\n\r\n")
        unfinished.sendall(b"x" * 2_000_000)
        assert unfinished.recv(100).startswith(b"HTTP/1.1 413 ")


class Load:
    """Clients that ask one after another, and ask again up to `retries` times where a request fails. Of 16 pictures
    each, so that most of the time they are in a replica."""

    def __init__(self, client, clients=8, retries=2):
        self.client, self.retries = client, retries
        self.asked = self.retried = self.lost = 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, seed):
        body = json.dumps({"images": [base64.b64encode(picture(seed)).decode()] * 16})
        while not self._ended.is_set():
            tries = 0
            while not (answered := self._answered(body)) and tries < self.retries:
                tries += 1
                time.sleep(0.2)
            with self._lock:
                self.asked, self.retried = self.asked + 1, self.retried + (tries > 0)
                self.lost += not answered

    def _answered(self, body):
        try:
            return self.client.ask("POST", "/v1/predict", body, {"content-type": "application/json"})[0] == 200
        except OSError:
            return False


def initialized(folder):
    """Replicas that could answer, of all there were."""
    logs = folder.glob("ray/session_latest/logs/serve/replica_*.log")
    return sum("Finished initializing replica" in log.read_text() for log in logs)


@pytest.mark.slow
@by_ray
def test_a_replica_that_is_killed_under_load_loses_no_request(served, record_property):
    process, client, folder = served
    before, ready = replicas(process.pid), initialized(folder)
    assert len(before) == 2
    with Load(client) as load:
        eventually(lambda: load.asked > 50)
        start = time.monotonic()
        os.kill(min(before), signal.SIGKILL)
        eventually(lambda: initialized(folder) > ready, 90)
        back = time.monotonic() - start
        others = replicas(process.pid) - before
        os.kill(max(before), signal.SIGKILL)  # now the new one alone answers
        asked = load.asked
        eventually(lambda: load.asked > asked + 50, 60)
    assert len(others) == 1
    assert load.lost == 0
    assert load.retried > 0  # else nothing was in flight
    for name, figure in {"requests": load.asked, "asked again": load.retried, "back after s": back}.items():
        record_property("table", ("Ray Serve: replicas killed under load", "8 clients, 2 killed", name, figure))


FAILING = """
    import os, sys
    import conformer_fast as cf
    from conformer_fast.serving import on_ray
    plain, file = on_ray.load, sys.argv[2]

    def load(folder, key):
        fast = plain(folder, key=key)
        run = fast.run
        def sometimes(images):
            if os.path.exists(file) and open(file).read() == str(os.getpid()):
                raise cf.EngineError("no engine")
            return run(images)
        fast.run = sometimes
        return fast

    on_ray.load = load
    app = cf.serve_app(sys.argv[1], cores=1, max_batch=2)
    on_ray.serve_on_ray(app, port=int(sys.argv[-1]), listening=lambda address: print(address, flush=True))
"""


@pytest.mark.slow
@by_ray
def test_a_replica_whose_engine_fails_is_replaced(bundle, tmp_path, record_property):
    with started("-c", textwrap.dedent(FAILING), bundle, tmp_path / "failing") as (process, client, _):
        (first,) = replicas(process.pid)
        assert client.predict(picture())[0] == 200
        start = time.monotonic()
        (tmp_path / "failing").write_text(str(first))
        assert client.predict(picture()) == (500, {"error": "no engine"})
        eventually(lambda: client.get("/v2/health/ready")[0] == 503)
        eventually(lambda: client.predict(picture())[0] == 200, 90)
        replaced = time.monotonic() - start
        assert first not in replicas(process.pid)
    record_property("table", ("Ray Serve: an engine that fails", "1 replica", "replaced after s", replaced))


@pytest.mark.slow
@by_ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_ray(bundle, number, record_property):
    with started(*command(bundle)) as (process, client, folder):
        assert client.predict(picture())[0] == 200
        assert {"raylet", "gcs_server"} <= {Path(name.split()[0]).name for name in processes(process.pid).values()}
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == 0
        took = time.monotonic() - start
        eventually(lambda: processes(process.pid) == {})
        assert "Traceback" not in (folder / "errors").read_text()
        stats = list(folder.glob("ray/session_latest/usage_stats.json"))
        assert not stats or '"usage_stats_enabled": true' not in stats[0].read_text()
    record_property("table", ("Ray Serve: the end", number.name, "s", took))


@pytest.mark.slow
@by_ray
def test_replicas_that_cannot_start_end_it(bundle):
    """That the model does not take pictures of this side is noticed in the replica."""
    with pytest.raises(AssertionError) as raised, started(*command(bundle, "--size", 8)):
        pass
    assert "conformer-fast serve: the replicas do not start: conformer_fast.errors." in str(raised.value)


@pytest.fixture
def refusal(capsys):
    def refused(*options):
        assert main.main(["serve", *map(str, options)]) == 2
        return capsys.readouterr().err.removeprefix("conformer-fast serve: ").strip()

    return refused


@by_ray
def test_a_cluster_that_is_not_there(bundle, refusal):
    port = free_port()
    assert refusal("--ray", f"127.0.0.1:{port}", "--bundle", bundle) == (
        f"no Ray cluster answers at 127.0.0.1:{port}: [Errno 111] Connection refused"
    )


@by_ray
def test_a_port_that_is_taken(bundle, refusal):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refusal("--ray", "--bundle", bundle, "--port", port)
    assert sentence == f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another"


REFUSED = {
    "no bundle": (["--ray"], "--ray needs --bundle DIR, a path that every machine has"),
    "a model": (["--ray", "--bundle", ".", "--model", "digits"], "--bundle says which model runs; leave out --model"),
    "an engine": (["--ray", "--bundle", ".", "--backend", "openvino"], "leave out --backend"),
    "replicas alone": (["--model", "digits", "--replicas", "2"], "only --ray has replicas; leave out --replicas"),
    "cores alone": (["--model", "digits", "--cores", "2"], "only --ray has replicas; leave out --cores"),
    "no replicas": (["--ray", "--replicas", "0"], "--replicas: must be a whole number, at least 1, got '0'"),
    "half of the bounds": (["--ray", "--replicas", "1:"], "--replicas: must be a whole number, at least 1, got ''"),
    "no whole bundle": (["--ray", "--bundle", "nowhere"], "give the folder of a whole bundle"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_cannot_be(what, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, sentence = REFUSED[what]
    assert sentence in refusal(*options)


WRONG = {
    "replicas": (0, "replicas must be a whole number, at least 1, got 0"),
    "fewest": ((0, 2), "replicas must be a whole number, at least 1, got 0"),
    "order": ((3, 2), "replicas must be the fewest and the most, got 3 and 2"),
    "three": ((1, 2, 3), "replicas must be a number or the fewest and the most, got (1, 2, 3)"),
    "cores": (0, "cores must be a whole number, at least 1, got 0"),
    "queue": (0, "queue must be a whole number, at least 1, got 0"),
    "token": ("", "the token must be of printable ASCII letters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(name, bundle):
    value, message = WRONG[name]
    option = name if name in ("cores", "queue", "token") else "replicas"
    with pytest.raises(cf.ArgumentError, match=re.escape(message)):
        cf.serve_app(bundle, **{option: value})


def test_without_ray_it_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setattr("conformer_fast.cluster.find_spec", lambda name: None)
    with pytest.raises(cf.BackendError, match=r'pip install "conformer-fast\[ray\]"'):
        cf.serve_app(bundle)


@by_ray
def test_the_manifest_for_kuberay_has_a_configuration_that_serve_takes():
    from ray.serve.schema import ServeDeploySchema

    manifest = yaml.safe_load((Path(__file__).parents[2] / "examples" / "kubernetes" / "ray.yaml").read_text())
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert [(app.import_path, app.route_prefix) for app in config.applications] == [("app:app", "/")]
    assert config.http_options.request_timeout_s == on_ray.REQUEST
