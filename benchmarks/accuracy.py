"""Accuracy and error of every backend and precision here, as JSON: accuracy.py OUT.json. Run by `make bench`.

Digits: how many of the held-out images are right. Variants: the error of both heads' scores, ||x - reference|| /
||reference||, the reference in float64, with seeded random weights on noise: the median of IMAGES images, the least and
the largest. 8 bits are calibrated with training images, and with noise.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.engines.openvino.device import describe
from conformer_fast.engines.registry import make
from conformer_fast.model.distance import relative_error

from .cpu import identity
from .peers import noise

CALIBRATION_PICTURES = 512
IMAGES = 8
IN_8_BITS = {"openvino": ("int8",), "native": ("int8",)}  # beside what the backend computes in without a calibration


def main(path: Path) -> None:
    split = load_digits_split()
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"], "variants": list(cf.VARIANTS)}
    report |= {"images": IMAGES, "rows": []}
    for backend in ("reference", "openvino", *([] if make("native").missing() else ["native"])):
        for precision in (*make(backend).precisions().native, *IN_8_BITS.get(backend, ())):
            digits = cf.create_model("digits", "packaged")
            fast = _compiled(digits, backend, precision, split.train_images[:CALIBRATION_PICTURES])
            # a count, as the table names it; top1_agreement gives a share
            correct = int((fast(split.test_images).logits.argmax(-1) == split.test_labels).sum())
            errors = [_errors(variant, backend, precision) for variant in cf.VARIANTS]
            row = {"backend": backend, "precision": precision, "correct": correct, "count": len(split.test_labels)}
            row |= {"errors": [statistics.median(found) for found in errors]}
            row |= {"low": [*map(min, errors)], "high": [*map(max, errors)]}
            print(row, flush=True)
            report["rows"].append(row)
    path.write_text(json.dumps(report, indent=1) + "\n")


def _errors(variant: str, backend: str, precision: str) -> list[float]:
    """Of each image."""
    model, images, exact = _exact(variant)
    found = torch.cat(_compiled(model, backend, precision, noise(images.shape[1:]))(images), 1)
    return [relative_error(own, right) for own, right in zip(found, exact, strict=True)]


@cache
def _exact(variant: str) -> tuple[cf.Conformer, Tensor, Tensor]:
    """A model, its images, and both heads' scores (B, 2 * classes) in float64."""
    torch.manual_seed(0)
    model, images = cf.create_model(variant), torch.randn(IMAGES, 3, 224, 224)
    with torch.inference_mode():
        exact = torch.cat(model.double()(images.double()), 1)
    return model.float(), images, exact


def _compiled(model: cf.Conformer, backend: str, precision: str, calibration: Tensor) -> cf.FastConformer:
    quantization = cf.calibrate(model, [calibration], precision=precision) if precision == "int8" else None
    return cf.compile(model, backend=backend, precision=precision, quantization=quantization)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
