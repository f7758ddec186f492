"""Maps over pictures, as the page draws them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from serving_samples import PNG, picture, running

from conformer_fast import compile, create_model, explain, load, load_batch
from conformer_fast.preprocessing.cpu import cut_of, preprocess_batch
from conformer_fast.serving.heatmaps import crop_of, on_cells
from conformer_fast.serving.reading import Limits


@pytest.fixture(scope="module")
def client(model):
    with running(model, max_batch=1, limits=Limits(1_000_000, 1, 2)) as client:
        yield client


def asked(client, body, query="", headers=PNG):
    status, _, answer = client.ask("POST", f"/v1/explain{query}", body, headers)
    return status, json.loads(answer)


@pytest.mark.parametrize("index", [None, 0, 7])
def test_maps_are_those_of_explain(index, client, model, tmp_path):
    (tmp_path / "picture").write_bytes(picture(side=100))
    expected = explain(model, load_batch([tmp_path / "picture"], model.side), index)
    status, found = asked(client, picture(side=100), "" if index is None else f"?class={index}")
    assert status == 200
    assert (found["class"]["index"],) == expected.classes
    assert found["class"]["label"] == model.labels[found["class"]["index"]]
    torch.testing.assert_close(torch.tensor(found["maps"]["trans"]), expected.trans[0], rtol=1e-4, atol=1e-6)
    conv = on_cells(expected.conv[0], model.side)
    torch.testing.assert_close(torch.tensor(found["maps"]["conv"]), conv, rtol=1e-4, atol=1e-5)


def test_a_place_of_the_map_is_drawn_where_it_is():
    """A map that is its own pixels' row or column, every 32 pixels, is so between them too."""
    rows, columns = torch.meshgrid(torch.arange(7) * 32.0, torch.arange(7) * 32.0, indexing="ij")
    centers = ((torch.arange(14) + 0.5) * 16).clamp(max=192)  # nothing is known beyond the last
    torch.testing.assert_close(on_cells(rows, 224), centers[:, None].expand(14, 14))
    torch.testing.assert_close(on_cells(columns, 224), centers.expand(14, 14))
    assert on_cells(torch.ones(1, 1), 32).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (256, 256), (900, 50)])
def test_the_crop_is_what_the_model_reads(width, height):
    """Of a picture whose red grows to the right and whose green grows to the bottom."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = (255 * np.stack([x, y, 0 * x], axis=-1)).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    crop = crop_of(cut_of(image, 224), 224)
    red, green, _ = preprocess_batch([image], 224, dtype=torch.uint8)[0].float() / 255
    centers = (torch.arange(224) + 0.5) / 224
    torch.testing.assert_close(red[100], crop["left"] + crop["width"] * centers, rtol=0, atol=0.01)
    torch.testing.assert_close(green[:, 100], crop["top"] + crop["height"] * centers, rtol=0, atol=0.01)


BAD = {
    "no picture": (b"x", "", 400, "not an image"),
    "a class too many": (picture(), "?class=10", 422, "class must be less than 10, got 10"),
    "no class": (picture(), "?class=-1", 422, "class must be a whole number, at least 0, got '-1'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_explained_is_said(case, client):
    body, query, status, message = BAD[case]
    found, answer = asked(client, body, query)
    assert found == status
    assert message in answer["error"]


def test_several_pictures_are_refused(client):
    body = json.dumps({"images": ["eA==", "eA=="]})
    assert asked(client, body, headers={"content-type": "application/json"})[0] == 400


@pytest.mark.slow
def test_a_bundle_has_no_maps_and_says_what_does(tmp_path):
    compile(create_model("digits", weights="packaged"), backend="openvino").save(tmp_path / "bundle")
    with running(load(tmp_path / "bundle"), max_batch=1) as client:
        status, answer = asked(client, picture())
        assert (status, "serve --model and --weights" in answer["error"]) == (501, True)
