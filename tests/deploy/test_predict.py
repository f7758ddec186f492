"""predict(): pictures in, the likeliest classes out, in the batches and sizes that an engine takes."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

import conformer_fast as cf
from conformer_fast.datasets.dataset import open_files
from conformer_fast.deploy import predict as module
from conformer_fast.deploy.predict import BATCH, predict, predicted
from conformer_fast.engines.base import Settings
from conformer_fast.engines.module import EngineModule
from conformer_fast.model.outputs import LOGITS

LABELS = ["none", "red", "green", "blue"]


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Ten pictures of one color each: red, green, blue, red, ..."""
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for index, path in enumerate(paths):
        Image.new("RGB", (100, 80), ("red", "green", "blue")[index % 3]).save(path)
    return paths


def model(outputs=("logits",), shapes=(), scores=lambda images: images.mean((2, 3)), **config):
    """Scores of what an image has of each color; "none" is never likely. `seen` are the shapes of its batches."""

    def engine(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(tuple(images.shape))
        logits = torch.nn.functional.pad(scores(images), (1, 0), value=-9.0)
        return tuple(logits if name == "logits" else logits / 2 for name in outputs)

    seen: list[tuple[int, ...]] = []
    sizes = cf.ConformerConfig(**{"num_classes": 4, **config})
    fast = EngineModule(engine, Settings(cf.TensorRT(shapes), "fp32"), "", sizes, "stem", outputs, outputs)
    fast.seen = seen
    return fast


@pytest.mark.parametrize("outputs", [("logits",), LOGITS, ("2.map", *reversed(LOGITS))], ids=str)
def test_the_likeliest_come_first(pictures, outputs):
    found = predict(model(outputs), pictures, LABELS, topk=2)
    assert [picture.path for picture in found.pictures] == list(map(str, pictures))
    assert [picture.top[0].label for picture in found.pictures] == [LABELS[1 + index % 3] for index in range(10)]
    assert [picture.top[0].index for picture in found.pictures] == [1 + index % 3 for index in range(10)]
    assert found.damaged == {}
    images = cf.load_batch(pictures[:1])
    exact = torch.nn.functional.pad(images.mean((2, 3)), (1, 0), value=-9.0).softmax(-1)[0]
    assert [guess.probability for guess in found.pictures[0].top] == pytest.approx(exact.topk(2).values.tolist())


def test_all_classes_if_there_are_no_more(pictures):
    (picture,) = predict(model(), pictures[:1], LABELS, topk=99).pictures
    assert sorted(guess.label for guess in picture.top) == sorted(LABELS)
    assert sum(guess.probability for guess in picture.top) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shapes", "size", "batches"),
    [
        ((), None, [(BATCH, 224), (10 - BATCH, 224)]),
        ((), 64, [(BATCH, 64), (10 - BATCH, 64)]),
        ((cf.Shapes((1, 2, 4), (96, 160, 192), (96, 160, 192)),), None, [(4, 160), (4, 160), (2, 160)]),
        ((cf.Shapes((1, 2, 4), (96, 160, 192), (96, 160, 192)),), 96, [(4, 96), (4, 96), (2, 96)]),
        ((cf.Shapes((1, 8, 64)),), None, [(BATCH, 224), (10 - BATCH, 224)]),
    ],
)
def test_images_fit_the_engine(pictures, shapes, size, batches):
    """They are of the size that it is tuned for, in batches that it takes."""
    fast = model(shapes=shapes)
    found = predict(fast, pictures, LABELS, size=size)
    assert fast.seen == [(batch, 3, side, side) for batch, side in batches]
    assert len(found.pictures) == 10


def test_damaged_pictures_are_left_out(pictures, tmp_path):
    bad = [tmp_path / "bad.png", tmp_path / "absent.png"]
    bad[0].write_bytes(b"not an image")
    found = predict(model(), [bad[0], pictures[0], bad[1], pictures[1]], LABELS)
    assert [picture.path for picture in found.pictures] == list(map(str, pictures[:2]))
    assert list(found.damaged) == list(map(str, bad))
    assert all(error.startswith(path) for path, error in found.damaged.items())


@pytest.mark.parametrize("keep", [False, True])
def test_pictures_are_kept_for_who_draws_them_and_until_the_next_are_decoded(pictures, monkeypatch, keep):
    """alive: of the pictures decoded before, when the network runs for its group of 2, and when one is decoded."""
    refs, alive = [], {"run": [], "decoded": []}

    def count(when):
        alive[when].append(sum(ref() is not None for ref in refs))

    def preprocess(image, size, recipe):
        if len(refs) % 2 == 0:
            count("decoded")
        refs.append(weakref.ref(image))
        return torch.rand(3, size, size)

    def run(images):
        count("run")
        return images.mean((2, 3))

    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "ThreadPoolExecutor", OneByOne)
    monkeypatch.setattr(module, "preprocess", preprocess)
    found = predicted(model(scores=run), open_files(list(map(str, pictures))), LABELS, topk=1, size=None, keep=keep)
    kept = [image is not None for _, image in found]
    assert kept == [keep] * 10
    own = keep  # the last that the caller was given
    assert alive == {"run": [2 * keep, *[own + 2 * keep] * 4], "decoded": [0, *[own] * 4]}


class OneByOne:
    """A ThreadPoolExecutor without threads."""

    def __init__(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


def test_only_damaged_pictures_run_nothing(tmp_path):
    fast = model()
    assert predict(fast, [tmp_path / "absent.png"], LABELS).pictures == ()
    assert fast.seen == []


def test_no_pictures(pictures):
    assert predict(model(), [], LABELS) == cf.Predictions((), {})


@pytest.mark.parametrize(
    ("fast", "options", "error", "message"),
    [
        (model(("1.map",)), {}, ValueError, r"returns 1\.map; predict needs conv_logits, trans_logits or logits"),
        (model(("conv_logits",)), {}, ValueError, "returns conv_logits; predict needs"),
        (model(in_channels=1), {}, ValueError, "pictures have 3 channels, the model reads 1"),
        (model(), {"topk": 0}, ValueError, "topk must be a whole number, at least 1, got 0"),
        (model(), {"size": 0}, ValueError, "size must be a whole number, at least 1"),
        (model(scores=lambda images: images.mean((2, 3)) * torch.nan), {}, ValueError, "NaN or infinite"),
    ],
)
def test_what_cannot_be(pictures, fast, options, error, message):
    with pytest.raises(error, match=message):
        predict(fast, pictures[:1], LABELS, **options)


def test_a_single_path_is_no_list(pictures):
    with pytest.raises(TypeError, match=r"paths must be a list, such as \['.*0\.png'\]"):
        predict(model(), pictures[0], LABELS)


def test_compiled_models_have_it():
    pytest.importorskip("sklearn")
    fast = cf.compile(cf.create_model("digits", "packaged"), backend="reference")
    with pytest.raises(TypeError, match="paths must be a list"):
        fast.predict("four.png")


def test_progress_is_shown_on_a_terminal_only(pictures, capsys, monkeypatch):
    predict(model(), pictures, LABELS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    predict(model(), pictures, LABELS)
    assert " 0/10 " in capsys.readouterr().err


def test_pictures_are_read_as_the_model_was_trained(pictures):
    seen = []
    fast = model(scores=lambda images: seen.append(images) or images.mean((2, 3)))
    fast.recipe = cf.Recipe(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    predict(fast, pictures[:2], LABELS)
    assert torch.equal(seen[0], cf.load_batch(pictures[:2], 64, recipe=fast.recipe))


def test_imagenets_names_are_said_to_be_assumed(pictures, tmp_path):
    pytest.importorskip("openvino")
    sizes = cf.ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=1, depth=3, mlp_ratio=1, num_classes=1000)
    fast = cf.compile(cf.create_model(sizes), backend="openvino", precision="fp32")
    for use in (lambda: fast.predict(pictures[:1], size=32), lambda: fast.save(tmp_path / "bundle")):
        with pytest.warns(UserWarning, match="the weights do not say their size, mean and std, labels; assumed where"):
            use()
