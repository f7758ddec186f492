"""What the tests of the room share: a model, and digits with two damaged pictures among them."""

from __future__ import annotations

from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.deploy.fast_conformer import FastConformer


@pytest.fixture(scope="session")
def fast() -> FastConformer:
    return cf.compile(cf.create_model("digits", "packaged"), backend="reference")


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder of 22 pictures at several depths; 1/cut.png and z.png are damaged."""
    pytest.importorskip("sklearn")
    from conformer_fast.datasets.digits import digit_image, load_pixels

    folder = tmp_path_factory.mktemp("source")
    pixels, labels = load_pixels()
    for index in range(20):
        path = folder / ("" if index % 5 == 0 else str(labels[index])) / ("deep" if index % 3 == 0 else "")
        path.mkdir(parents=True, exist_ok=True)
        digit_image(pixels[index]).save(path / f"{index:02}.png")
    (folder / "1" / "cut.png").write_bytes((folder / "1" / "01.png").read_bytes()[:70])
    (folder / "z.png").write_bytes(b"not an image")
    return folder
