"""The addresses, over real connections to a server in this process."""

import base64
import gc
import http.client
import json
import logging
import socket
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from serving_samples import PNG, eventually, picture, running

from conformer_fast.serving.heatmaps import Explainer
from conformer_fast.serving.reading import Limits


@pytest.fixture(scope="module")
def client(model):
    with running(model, max_batch=4, limits=Limits(100_000, 0.1, 4)) as client:
        yield client


def form(*files, boundary="next"):
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="picture"; filename="{index}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for index, data in enumerate(files)
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={boundary}"}


def as_json(*files):
    return json.dumps({"images": [base64.b64encode(data).decode() for data in files]}), {
        "content-type": "application/json"
    }


@pytest.mark.parametrize("send", [form, as_json, lambda *files: (files[0], PNG)], ids=["form", "JSON", "body"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_by_each_way(send, kind, client, model, tmp_path):
    data = picture(1, kind=kind)
    (tmp_path / "picture").write_bytes(data)
    (expected,) = model.predict([tmp_path / "picture"], topk=3).pictures
    status, answer = client.predict(*send(data), query="?topk=3")
    assert status == 200
    (found,) = answer["predictions"]
    assert [guess["index"] for guess in found["top"]] == [guess.index for guess in expected.top]
    for guess, same in zip(found["top"], expected.top, strict=True):
        assert guess["label"] == same.label
        assert guess["probability"] == pytest.approx(same.probability, rel=1e-4)
    assert set(found["heads"]) == {"conv", "trans"}
    assert set(found["milliseconds"]) == {"decode", "queue", "engine"}
    assert len(answer["engine"]) == 64


def test_an_answer_is_sent_at_once(client):
    """Its end does not wait for the client to say that it has its beginning, which takes 40 ms."""
    connection, beside = http.client.HTTPConnection("127.0.0.1", client.port), []
    for _ in range(9):
        start = time.monotonic()
        connection.request("POST", "/v1/predict", picture(), PNG)
        (found,) = json.load(connection.getresponse())["predictions"]
        beside.append(1e3 * (time.monotonic() - start) - sum(found["milliseconds"].values()))
    connection.close()
    assert sorted(beside)[4] < 30


def test_several_pictures_keep_their_order(client):
    files = [picture(seed) for seed in range(4)]
    alone = [client.predict(data)[1]["predictions"][0]["top"][0] for data in files]
    for send in (form, as_json):
        status, answer = client.predict(*send(*files))
        assert status == 200
        for found, same in zip(answer["predictions"], alone, strict=True):
            assert found["top"][0]["index"] == same["index"]
            assert found["top"][0]["probability"] == pytest.approx(same["probability"], rel=1e-4)


BAD = {
    "no picture": (b"nothing", PNG, 400, "not an image"),
    "cut": (picture()[:-200], PNG, 400, "damaged or truncated"),
    "empty": (b"", PNG, 400, "no picture"),
    "too long": (bytes(100_001), PNG, 413, "over 100,000 bytes"),
    "too large": (picture(side=330)[:90_000], PNG, 400, "330x330 picture has 108,900 pixels, 100,000 are allowed"),
    "too many": (*form(*[b"x"] * 5), 413, "Too many files"),
    "one of two": (*form(picture(), b"bad"), 400, "picture 2 of 2: empty, damaged or not an image"),
    "no form": (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "multipart/form-data"),
    "no boundary": (b"x", {"content-type": "multipart/form-data"}, 400, "boundary"),
    "packed": (b"x", PNG | {"content-encoding": "gzip"}, 415, "packed by 'gzip'"),
    "no JSON": (b"{", {"content-type": "application/json"}, 400, '{"images": ["base64", ...]}'),
    "no images": (b"[1]", {"content-type": "application/json"}, 400, '{"images": ["base64", ...]}'),
    "no base64": (b'{"images": ["%"]}', {"content-type": "application/json"}, 400, '{"images": ["base64", ...]}'),
    "much else in JSON": (
        b'{"images": [' + b"[]," * 9000 + b"[]]}",
        {"content-type": "application/json"},
        400,
        '{"images": ["base64", ...]}, of 4 at most',
    ),
    "a charset": (
        form(picture())[0],
        {"content-type": "multipart/form-data; boundary=next; charset=undefined"},
        400,
        "the form cannot be read: its charset is none",
    ),
    "deep JSON": (b"[" * 90_000, {"content-type": "application/json"}, 400, '{"images": ["base64", ...]}'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence_and_the_server_runs_on(case, client):
    body, headers, status, message = BAD[case]
    found, answer = client.predict(body, headers)
    assert (found, list(answer)) == (status, ["error"])
    assert message in answer["error"]
    assert "Traceback" not in answer["error"]
    assert client.predict(picture())[0] == 200


def test_a_wrong_number_of_classes_is_refused(client):
    for given in ("0", "x", "1.5"):
        status, answer = client.predict(picture(), query=f"?topk={given}")
        assert (status, answer) == (422, {"error": f"topk must be a whole number, at least 1, got '{given}'"})
    assert len(client.predict(picture(), query="?topk=1000")[1]["predictions"][0]["top"]) == 10


def test_what_balancers_ask(client):
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        status, _, body = client.ask("HEAD", path)
        assert (status, body) == (200, b"")


def test_no_address_sends_to_another(client):
    """What the client calls the server must not come back as where to go."""
    status, headers, _ = client.get("/v1/predict/", host="evil.example")
    assert status == 404
    assert "location" not in {name.lower() for name in headers}


def test_an_upgrade_is_no_way_around(model):
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    with running(model, max_batch=1, token="secret") as client:
        assert client.get("/metrics", **upgrade)[0] == 401
        assert client.predict(picture(), PNG | upgrade)[0] == 401
        assert client.predict(picture(), PNG | upgrade | {"authorization": "bearer secret"})[0] == 200


def test_what_is_not_there_is_said_in_a_sentence(client):
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/predict", 405)):
        found, headers, body = client.ask(method, path)
        assert (found, headers.get("allow")) == (status, "POST" if status == 405 else None)
        assert "/docs lists what there is" in json.loads(body)["error"]


def test_what_an_answer_does_not_tell(client):
    """Nothing of the machine or of what runs on it."""
    for status, headers, body in (client.get("/v2/health/live"), client.get("/nowhere")):
        assert "server" not in {name.lower() for name in headers}
        assert socket.gethostname() not in body.decode()
        assert status in (200, 404)


def test_metrics_count(client):
    before = client.counted("conformer_fast_pictures_total")
    client.predict(*form(picture(), picture()))
    client.predict(b"bad")
    assert client.counted("conformer_fast_pictures_total") == before + 2
    assert client.counted('conformer_fast_failures_total{kind="picture"}') >= 1
    assert client.counted('conformer_fast_requests_total{route="/v1/predict",status="200"}') >= 1
    assert client.counted("conformer_fast_batch_pictures_count") >= 1
    assert client.counted("conformer_fast_queue_pictures") == 0


def test_the_documentation_page_is_there(client):
    status, _, body = client.get("/openapi.json")
    assert status == 200
    assert "/v1/predict" in json.loads(body)["paths"]


class Slow:
    """Holds the model's runs until it is let go."""

    def __init__(self, model, monkeypatch):
        self.go, run = threading.Event(), type(model).run
        self.began = threading.Semaphore(0)

        def held(model, images):
            self.began.release()
            self.go.wait(30)
            return run(model, images)

        monkeypatch.setattr(type(model), "run", held)


def test_a_full_server_says_so_at_once(model, monkeypatch):
    with running(model, max_batch=1, queue=2) as client:
        slow = Slow(model, monkeypatch)
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(client.predict(picture()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: client.counted("conformer_fast_queue_pictures") == 1)
        start = time.monotonic()
        status, headers, body = client.ask("POST", "/v1/predict", picture(), PNG)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "2 may be" in json.loads(body)["error"]
        assert time.monotonic() - start < 2
        slow.go.set()
        for thread in threads:
            thread.join(30)
        assert [status for status, _ in answers] == [200, 200]
        assert client.predict(picture())[0] == 200  # there is room again


def test_a_client_that_goes_away_frees_its_place(model, monkeypatch, caplog):
    with running(model, max_batch=1, queue=2) as client:
        slow = Slow(model, monkeypatch)
        first = threading.Thread(target=client.predict, args=(picture(),))
        first.start()
        assert slow.began.acquire(timeout=10)
        data = picture()
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            lines = "POST /v1/predict HTTP/1.1", "host: x", f"content-length: {len(data)}", "content-type: image/png"
            connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + data)
            eventually(lambda: client.counted("conformer_fast_queue_pictures") == 1)
            assert client.ask("POST", "/v1/predict", data, PNG)[0] == 503
        eventually(lambda: client.counted('conformer_fast_failures_total{kind="gone"}') == 1)
        assert client.counted("conformer_fast_queue_pictures") == 0
        second = threading.Thread(target=client.predict, args=(picture(),))
        second.start()
        slow.go.set()
        for thread in (first, second):
            thread.join(30)
        assert client.counted("conformer_fast_pictures_total") == 2
        gc.collect()
        assert not caplog.records


def test_half_a_request_frees_its_place(model, caplog):
    with running(model, max_batch=1, queue=1) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf")
            eventually(lambda: client.predict(picture())[0] == 503)  # it has the only place
        eventually(lambda: client.counted('conformer_fast_failures_total{kind="gone"}') == 1)
        assert client.predict(picture())[0] == 200
        assert not caplog.records


def test_a_request_that_does_not_come_gives_its_place_back(model, monkeypatch):
    monkeypatch.setattr("conformer_fast.serving.reading.UPLOAD", 0.5)
    kinds = {"image/png": "h", "multipart/form-data; boundary=x": "--x\r\n"}
    with running(model, max_batch=1, queue=1) as client:
        for kind, begun in kinds.items():
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                lines = (
                    "POST /v1/predict HTTP/1.1",
                    "host: x",
                    f"content-type: {kind}",
                    "content-length: 1000",
                    "",
                    begun,
                )
                connection.sendall("\r\n".join(lines).encode())
                assert b"408" in connection.recv(1000)
            assert client.predict(picture())[0] == 200
        assert client.counted('conformer_fast_failures_total{kind="slow"}') == len(kinds)


def test_connections_without_a_request_are_closed(model, monkeypatch):
    monkeypatch.setattr("conformer_fast.serving.server.FIRST_REQUEST", 0.5)
    with running(model, max_batch=1) as client:
        for begun in (b"", b"POST /v1/predict HT"):
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                connection.sendall(begun)
                connection.settimeout(10)
                assert connection.recv(10) == b""
        slow = http.client.HTTPConnection("127.0.0.1", client.port)
        slow.request("GET", "/v2/health/live")
        assert slow.getresponse().read()
        time.sleep(1)
        slow.request("GET", "/v2/health/live")  # who has asked may ask again
        assert slow.getresponse().status == 200
        slow.close()


def test_more_bytes_than_the_server_may_hold(model):
    """Of all requests together, while they come and until they are answered."""
    limits = Limits(1000, 1.0, 4)
    assert limits.of_all_requests == 40_000
    with running(model, max_batch=1, limits=limits) as client, ExitStack() as held:
        for _ in range(40):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", client.port)))
            head = "POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n"
            connection.sendall(head.encode() + bytes(999))
        eventually(lambda: client.predict(bytes(900))[0] == 503)
        held.close()
        eventually(lambda: client.predict(bytes(900))[0] == 400)  # no picture, but there is room


def test_explanations_leave_places_to_predictions(model, monkeypatch):
    with running(model, max_batch=1, queue=8) as client:
        go = threading.Event()
        monkeypatch.setattr(Explainer, "_explained", lambda *_: go.wait(30))
        answers = []

        def ask():
            answers.append(client.ask("POST", "/v1/explain", picture(), PNG)[0])

        asking = [threading.Thread(target=ask) for _ in range(6)]
        for thread in asking:
            thread.start()
        eventually(lambda: answers == [503, 503])  # four wait
        assert client.predict(picture())[0] == 200
        go.set()
        for thread in asking:
            thread.join(30)
        assert len(answers) == 6


def test_more_pictures_than_ever_fit_are_not_asked_for_again(model):
    with running(model, max_batch=1, queue=2) as client:
        status, answer = client.predict(*form(picture(), picture(), picture()))
        assert status == 413
        assert "3 images, 2 may be" in answer["error"]


def test_a_fault_of_the_server_tells_nothing_and_is_logged(model, monkeypatch, caplog):
    with running(model, max_batch=1) as client:
        monkeypatch.setattr(type(model), "run", lambda self, images: 1 / 0)
        monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
        status, answer = client.predict(picture())
        assert (status, answer) == (500, {"error": "the server failed; what happened is in its log"})
        eventually(lambda: "ZeroDivisionError" in caplog.text)  # it is written once the answer is
        assert client.counted('conformer_fast_failures_total{kind="server"}') == 1


def test_an_engine_that_hangs_does_not_keep_the_server(model, monkeypatch, caplog):
    monkeypatch.setattr("conformer_fast.serving.service.PATIENCE", 0.5)
    monkeypatch.setattr("conformer_fast.serving.server.GRACE", 1)
    with running(model, max_batch=1) as client:
        slow = Slow(model, monkeypatch)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.predict(picture())))
        asking.start()
        assert slow.began.acquire(timeout=10)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    slow.go.set()
    asking.join(30)
    assert answers == [(503, {"error": "the server is stopping"})]
    assert "Traceback" not in caplog.text


def test_scores_that_are_not_finite_are_an_error_of_the_server(model, monkeypatch):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 16, 16], "data": [0] * 768}
    with running(model, max_batch=1) as client:
        monkeypatch.setattr(type(model), "run", lambda self, images: (torch.full((1, 10), torch.nan),) * 2)
        for path, body in (
            ("/v1/predict", picture()),
            ("/v2/models/conformer/infer", json.dumps({"inputs": [tensor]})),
        ):
            status, _, answer = client.ask("POST", path, body, PNG)
            assert status == 500
            assert "NaN or infinite" in json.loads(answer)["error"]


def test_large_files_stay_in_memory(model, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: pytest.fail("it goes to the disk"))
    large = picture(side=900)
    assert len(large) > 2_000_000
    with running(model, max_batch=1) as client:
        assert client.predict(*form(large))[0] == 200


def test_a_token_is_asked_for(model):
    with running(model, max_batch=1, token="secret") as client:
        for header in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}):
            status, headers, _ = client.ask("POST", "/v1/predict", picture(), PNG | header)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/metrics", **header)[0] == 401
        assert client.predict(picture(), PNG | {"authorization": "Bearer secret"})[0] == 200
        assert client.get("/v2/health/live")[0] == 200
