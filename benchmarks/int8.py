"""INT8 on the CPU against our own 16 bits and NNCF's INT8 of the unfused model: int8.py OUT.json. Run by `make bench`.

Speed: all candidates in turn, on noise, which both quantisations are calibrated with. Accuracy: the digit-pairs model
on its held-out pictures, both quantisations calibrated with the same pictures of its training split.
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

import conformer_fast as cf
from conformer_fast.digit_pairs import CONFIG, IMAGE_SIZE, DigitPairs
from conformer_fast.engines.openvino import describe_cpu, native_precisions
from conformer_fast.preprocess import preprocess
from conformer_fast.timing import time_in_turn
from conformer_fast.verify import relative_error

from .peers import nncf_peers

WEIGHTS = Path(__file__).parent.parent / "tests" / "data" / "digit_pairs.safetensors"
NOISE_IMAGES = 16
ROUNDS = {1: 40, 8: 12}  # by batch
CALIBRATION_PICTURES, TEST_PICTURES = 512, 10_000
Run = Callable[[Tensor], Tensor]


def main(path: Path) -> None:
    rest = native_precisions()[-1]
    report: dict[str, Any] = {**describe_cpu(), "threads": torch.get_num_threads(), "rest": rest}
    report["speed"] = [row for variant in cf.VARIANTS for row in _speed(variant, rest)]
    report["accuracy"] = list(_accuracy(rest))
    path.write_text(json.dumps(report, indent=1) + "\n")


def _speed(variant: str, rest: str) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    model = cf.create_model(variant)
    noise = torch.randn(NOISE_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    quantization = cf.calibrate(model, [noise], precision="int8")
    for batch, rounds in ROUNDS.items():
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        candidates = {**_ours(model, rest, quantization), **nncf_peers(model, images, noise, rest)}
        timings = time_in_turn(candidates, images, rounds)
        for name, timing in timings.items():
            row = {"variant": variant, "batch": batch, "implementation": name, "seconds": timing.median}
            row["speedup"] = timing.speedup
            print(row, flush=True)
            yield row


def _accuracy(rest: str) -> Iterator[dict[str, Any]]:
    model = cf.create_model(CONFIG, WEIGHTS)
    calibration, _ = pictures("train", 0, CALIBRATION_PICTURES)
    images, numbers = pictures("test", 1, TEST_PICTURES)
    quantization = cf.calibrate(model, calibration.split(64), precision="int8")
    candidates: dict[str, Run] = {"reference": lambda images: model(images).logits}
    candidates |= {**_ours(model, rest, quantization), **nncf_peers(model, images[:8], calibration, rest)}
    del candidates["OpenVINO int8 (NNCF), streams"]  # the same engine
    with torch.inference_mode():
        exact = model(images).logits
        for name, run in candidates.items():
            scores = torch.cat([run(part) for part in images.split(8)])
            row = {"implementation": name, "correct": int((scores.argmax(-1) == numbers).sum()), "count": len(numbers)}
            row["agreement"] = int((scores.argmax(-1) == exact.argmax(-1)).sum())
            row["relative_error"] = relative_error(scores, exact)
            print(row, flush=True)
            yield row


def _ours(model: cf.Conformer, rest: str, quantization: cf.Quantization) -> dict[str, Run]:
    plain = cf.compile(model, backend="openvino", precision=rest)
    quantised = cf.compile(model, backend="openvino", precision="int8", calibration=quantization)
    return {
        f"conformer_fast {rest}": lambda images: plain(images).logits,
        "conformer_fast int8": lambda images: quantised(images).logits,
    }


def pictures(split: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of two-digit numbers, preprocessed, (count, 3, 64, 64), and their numbers."""
    drawn, numbers = DigitPairs(split, seed).draw(count)
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]
    return torch.stack([preprocess(image, IMAGE_SIZE) for image in images]), numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]))
