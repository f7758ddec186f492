"""What conformer_fast does, on this machine, in a few minutes: accuracy, predictions, errors and speed.

Run it with `make run`. Nothing is downloaded: published weights are used if they are in the cache already.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

import conformer_fast as cf
from conformer_fast.cli import main as main_module
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.engines.registry import BACKENDS, make
from conformer_fast.engines.timing import time_in_turn
from conformer_fast.model.class_names import labels_for
from conformer_fast.model.distance import relative_error, top1_agreement
from conformer_fast.preprocessing.cpu import load_batch
from conformer_fast.tables import Column, Table

PHOTO_MODEL = "small-p16"


def main() -> None:
    start = time.perf_counter()
    os.environ["CONFORMER_FAST_OFFLINE"] = "1"
    torch.manual_seed(0)
    title("This machine")
    main_module.main(["info"])
    title("Accuracy: handwritten digits, the fifth that training never saw")
    digits = show_accuracy()
    title(f"Predictions: photographs through {PHOTO_MODEL}")
    show_predictions()
    title("Error: the compiled digits model against the reference, block by block")
    fast = cf.compile(digits)
    fast.verify(load_digits_split().test_images[:32].to(fast.device))
    title("Speed: reference (eager fp32) against compiled")
    main_module.main(["bench", "--rounds", "3"])
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")


def show_accuracy() -> cf.Conformer:
    split = load_digits_split()
    model = cf.create_model("digits", weights="packaged")
    table = Table(
        Column("backend", width=9),
        Column("precision"),
        Column("accuracy", ".2%"),
        Column("ms/image", ".2f"),
    )
    print(table.head)
    for backend in BACKENDS:
        missing = make(backend).missing()
        if missing:
            print(table.line(backend, missing, "", ""))
            continue
        for precision in make(backend).precisions().native:
            fast = cf.compile(model, backend=backend, precision=precision)
            images = split.test_images.to(fast.device)
            accuracy = top1_agreement(fast(images).logits.cpu(), split.test_labels)
            seconds = time_in_turn({backend: fast}, images, rounds=1)[backend].median
            print(table.line(backend, precision, accuracy, seconds / len(images) * 1e3))
    return model


def show_predictions() -> None:
    try:
        model = cf.create_model(PHOTO_MODEL, weights="pretrained")
    except cf.DownloadError:
        print(
            "The published weights are not in the cache (`conformer-fast predict` downloads them), so random ones are"
        )
        print("used: the classes mean nothing, what counts is that reference and compiled model agree.\n")
        model = cf.create_model(PHOTO_MODEL)
    fast = cf.compile(model)
    labels = labels_for(model.config)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder))
        images = load_batch(paths)
    with torch.inference_mode():
        expected, result = model(images).logits, fast(images.to(fast.device)).logits.cpu()
    words = map(Column, ("photograph", "reference says", "compiled says"))
    rows = (
        (path.stem, labels[true.argmax()], labels[ours.argmax()], relative_error(ours, true))
        for path, true, ours in zip(paths, expected, result, strict=True)
    )
    print("\n".join(Table(*words, Column("error of the scores", ".2%")).lines(rows)))


def write_photographs(folder: Path) -> list[Path]:
    """The photographs that scikit-learn and scikit-image carry, as JPEG files."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    photographs = {
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
        "cat": skimage.data.cat(),
        "coffee": skimage.data.coffee(),
        "rocket": skimage.data.rocket(),
    }
    paths = []
    for name, pixels in photographs.items():
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=95)
    return paths


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
