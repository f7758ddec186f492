"""Accuracy of INT8 on the CPU beside the reference, NNCF's and ONNX Runtime's INT8 of the unfused model:
int8_accuracy.py OUT.json. Run by `make bench`; it takes long, and nothing is timed.

The digit-pairs model on held-out pictures, all quantizations calibrated with the same pictures of its training split.
"ours_wrong" and "ours_alone" count the pictures that one has right and our INT8 has not, and the reverse: that of our
own code, where it runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import conformer_fast as cf
from conformer_fast.datasets.digit_pairs import CONFIG, IMAGE_SIZE, DigitPairs
from conformer_fast.engines.openvino.device import describe
from conformer_fast.model.distance import relative_error
from conformer_fast.preprocessing.cpu import preprocess

from .cpu import identity
from .peers import IN_8_BITS, fastest_rest

WEIGHTS = Path(__file__).parent.parent / "tests" / "data" / "digit_pairs.safetensors"
CALIBRATION_PICTURES, TEST_PICTURES = 512, 50_000
DRAWN, TOGETHER = 1000, 8  # pictures at a time; and through a model
Run = Callable[[Tensor], Tensor]


def main(path: Path) -> None:
    rest = fastest_rest()
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"], "rest": rest}
    report["rows"] = list(_rows(rest))
    path.write_text(json.dumps(report, indent=1) + "\n")


def _rows(rest: str) -> Iterator[dict[str, Any]]:
    model = cf.create_model(CONFIG, WEIGHTS)
    ((calibration, _),) = pictures("train", 0, CALIBRATION_PICTURES)
    plain = cf.compile(model, backend="openvino", precision=rest)
    candidates: dict[str, Run] = {
        "reference": lambda images: model(images).logits,
        f"conformer_fast {rest}": lambda images: plain(images).logits,
    }
    for name, build in IN_8_BITS.items():
        if name != "OpenVINO int8 (NNCF), streams":  # the same engine
            candidates[name] = build(model, calibration[:TOGETHER], calibration)
    found: dict[str, list[Tensor]] = {name: [] for name in candidates}
    numbers = []
    with torch.inference_mode():
        parts = pictures("test", 1, TEST_PICTURES)
        for images, expected in tqdm(parts, "accuracy", TEST_PICTURES // DRAWN, disable=None):
            numbers.append(expected)
            for name, run in candidates.items():
                found[name].append(torch.cat([run(part) for part in images.split(TOGETHER)]))
    scores = {name: torch.cat(parts) for name, parts in found.items()}
    classes = {name: values.argmax(-1) for name, values in scores.items()}
    # by picture, not top1_agreement's share: two candidates' right ones are compared
    right = {name: values == torch.cat(numbers) for name, values in classes.items()}
    ours = next(name for name in IN_8_BITS if name.startswith("conformer_fast"))
    for name in candidates:
        row: dict[str, Any] = {"implementation": name, "count": len(right[name]), "correct": int(right[name].sum())}
        row["agreement"] = int((classes[name] == classes["reference"]).sum())
        row["relative_error"] = relative_error(scores[name], scores["reference"])
        row["ours_wrong"] = int((right[name] & ~right[ours]).sum())
        row["ours_alone"] = int((right[ours] & ~right[name]).sum())
        print(row, flush=True)
        yield row


def pictures(split: str, seed: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures of two-digit numbers, preprocessed, (DRAWN, 3, 64, 64), and their numbers, until there are `count`."""
    pairs = DigitPairs(split, seed)
    for start in range(0, count, DRAWN):
        drawn, numbers = pairs.draw(min(DRAWN, count - start))
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]
        yield torch.stack([preprocess(image, IMAGE_SIZE) for image in images]), numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]))
