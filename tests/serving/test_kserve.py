"""The KServe v2 protocol, as an existing client speaks it, and what is refused of it."""

import json
import threading

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from serving_samples import running

from conformer_fast.serving.kserve import HEADER
from conformer_fast.serving.reading import Limits

INFER = "/v2/models/conformer/infer"


@pytest.fixture(scope="module")
def client(model):
    with running(model, max_batch=4, limits=Limits(5_000_000, 1, 4)) as client:
        yield client


@pytest.fixture
def theirs(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as theirs:
        yield theirs


def images_as(images, binary=True):
    kinds = {np.float32: "FP32", np.float16: "FP16", np.uint8: "UINT8"}
    given = triton.InferInput("images", images.shape, kinds[images.dtype.type])
    given.set_data_from_numpy(images, binary_data=binary)
    return [given]


def test_what_it_is(theirs):
    assert theirs.is_server_live()
    assert theirs.is_server_ready()
    assert theirs.is_model_ready("conformer")
    assert theirs.is_model_ready("conformer", "1")
    assert theirs.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = theirs.get_model_metadata("conformer")
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert [(output["name"], output["shape"]) for output in metadata["outputs"]] == [
        ("conv_logits", [-1, 10]),
        ("trans_logits", [-1, 10]),
    ]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize(("count", "side"), [(1, 32), (3, 40), (9, 32)])  # 9 are three batches
def test_logits_are_the_models(binary, count, side, theirs, model):
    images = np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in model.outputs]
    found = theirs.infer("conformer", images_as(images, binary), outputs=outputs, request_id="seven")
    assert found.get_response()["id"] == "seven"
    for name, expected in zip(model.outputs, model(torch.from_numpy(images))[:2], strict=True):
        np.testing.assert_allclose(found.as_numpy(name), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_pixels_and_halves(dtype, theirs, model):
    images = np.random.default_rng(0).integers(0, 3, (2, 3, 32, 32)).astype(dtype)
    found = theirs.infer("conformer", images_as(images)).as_numpy("trans_logits")
    expected = model(torch.from_numpy(images))[1]
    np.testing.assert_allclose(found, expected.float().numpy(), rtol=1e-4, atol=1e-4)


def test_one_output_alone(theirs):
    outputs = [triton.InferRequestedOutput("trans_logits")]
    found = theirs.infer("conformer", images_as(np.zeros((1, 3, 32, 32), np.float32)), outputs=outputs)
    assert [output["name"] for output in found.get_response()["outputs"]] == ["trans_logits"]


def request(**changes):
    given = {"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.0] * 192}
    return json.dumps({"inputs": [given | changes]}).encode()


BAD = {
    "no JSON": (b"{", "no inference request"),
    "no inputs": (b"{}", "no inference request"),
    "two inputs": (json.dumps({"inputs": [{}, {}]}).encode(), "no inference request"),
    "another input": (request(name="x"), "the input is 'x'"),
    "no type": (request(datatype=[]), "must be 'images', of FP32, FP16, UINT8"),
    "parameters": (request(parameters=[1]), "no inference request"),
    "an id": (json.dumps({**json.loads(request()), "id": 3}).encode(), "the id must be a text, got 3"),
    "a huge shape": (request(shape=[10**4000, 3, 8, 8]), "no list of positive numbers"),
    "a long shape": (request(shape=[2**30] * 1000), "no list of positive numbers"),
    "cut numbers": (request(datatype="UINT8", data=[1.7] * 192), "no numbers of UINT8"),
    "numbers beyond it": (request(datatype="UINT8", data=[256] * 192), "no numbers of UINT8"),
    "truths": (request(data=[True] * 192), "no numbers of FP32"),
    "another type": (request(datatype="INT64"), "must be 'images', of FP32, FP16, UINT8"),
    "no shape": (request(shape=[1, -3, 8, 8]), "no list of positive numbers"),
    "too few values": (request(data=[0.0] * 4), "the input has 4 values, the shape [1, 3, 8, 8] has 192"),
    "no numbers": (request(data=["a"] * 192), "no numbers of FP32"),
    "channels": (request(shape=[1, 4, 8, 6]), "images must have shape (batch, 3, height, width), got (1, 4, 8, 6)"),
    "NaN": (request(shape=[1, 3, 16, 16], data=[float("nan")] * 768), "768 of the images' 768 values are NaN"),
    "large": (request(shape=[1, 3, 1, 1 << 22]), "1 images of 1x4194304: an image may have 2,097,152 pixels"),
    "many": (request(shape=[100, 3, 224, 224]), "a request 4,194,304"),
    "much JSON": (b" " * (1 << 24) + b"{}", "tensors in JSON may have 16,777,216 bytes"),
    "many lists": (b'{"inputs": ' + b"[" * 100_001, "100,000 lists; send binary"),
    "another output": (
        json.dumps({**json.loads(request()), "outputs": [{"name": "x"}]}).encode(),
        "there is no output 'x'; there are conv_logits, trans_logits",
    ),
}


LARGE = ("large", "many", "much JSON", "many lists")


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_in_a_sentence(case, client):
    body, message = BAD[case]
    status, _, answer = client.ask("POST", INFER, body)
    assert status == (413 if case in LARGE else 400)
    assert message in json.loads(answer)["error"]


@pytest.mark.parametrize("header", ["x", "-1", "100000", "9" * 5000], ids=lambda header: header[:6])
def test_a_wrong_length_of_the_header_is_refused(header, client):
    status, _, answer = client.ask("POST", INFER, request(), {HEADER: header})
    assert (status, HEADER in json.loads(answer)["error"]) == (400, True)


def test_half_numbers_beyond_their_range_are_refused_quietly(client, recwarn):
    status, _, answer = client.ask("POST", INFER, request(datatype="FP16", data=[1e6] * 192))
    assert (status, "NaN or infinite" in json.loads(answer)["error"]) == (400, False)  # smaller than a patch, first
    body = request(datatype="FP16", shape=[1, 3, 16, 16], data=[1e6] * 768)
    status, _, answer = client.ask("POST", INFER, body)
    assert (status, "768 of the images' 768 values are NaN or infinite" in json.loads(answer)["error"]) == (400, True)
    assert not recwarn.list


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_others_in_the_same_batch_change_nothing(kind, theirs, model, client):
    images = np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32)).astype(kind)
    other = (
        np.random.default_rng(1).integers(0, 255, (1, 3, 32, 32)).astype(np.uint8 if kind == np.float32 else np.float32)
    )
    expected = model(torch.from_numpy(images))[1].numpy()
    found = []

    def ask(images, keep):
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as theirs:
            for _ in range(10):
                answer = theirs.infer("conformer", images_as(images)).as_numpy("trans_logits")
                found.extend([answer] if keep else [])

    threads = [threading.Thread(target=ask, args=(given, given is images)) for given in (images, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 30
    for answer in found:
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3)


def test_another_model_is_not_found(client):
    for path in ("/v2/models/other", "/v2/models/conformer/versions/2/ready"):
        assert client.get(path)[0] == 404
