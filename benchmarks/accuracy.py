"""Accuracy and error of every backend and precision here, as JSON: accuracy.py OUT.json. Run by `make bench`.

Digits: how many of the held-out images are right. Variants: the error of both heads' scores, ||x - reference|| /
||reference||, the reference in float64, with seeded random weights on one image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import conformer_fast as cf
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.engines.registry import make
from conformer_fast.model.distance import relative_error


def main(path: Path) -> None:
    split = load_digits_split()
    rows = []
    for backend in ("reference", "openvino"):
        for precision in make(backend).precisions().native:
            fast = cf.compile(cf.create_model("digits", "packaged"), backend=backend, precision=precision)
            # a count, as the table names it; top1_agreement gives a share
            correct = int((fast(split.test_images).logits.argmax(-1) == split.test_labels).sum())
            errors = [_error(variant, backend, precision) for variant in cf.VARIANTS]
            rows.append({"backend": backend, "precision": precision, "correct": correct, "errors": errors})
            rows[-1]["count"] = len(split.test_labels)
            print(rows[-1], flush=True)
    path.write_text(json.dumps({"variants": list(cf.VARIANTS), "rows": rows}, indent=1) + "\n")


def _error(variant: str, backend: str, precision: str) -> float:
    torch.manual_seed(0)
    model, images = cf.create_model(variant), torch.randn(1, 3, 224, 224)
    fast = cf.compile(model, backend=backend, precision=precision)
    with torch.inference_mode():
        exact = model.double()(images.double())
    return relative_error(torch.cat(fast(images)), torch.cat(exact))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
