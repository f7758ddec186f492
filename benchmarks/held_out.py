"""Held-out accuracy of the trained models on every path that runs here: held_out.py OUT.json [IMPLEMENTATION ...],
of all without one. Run by `make bench`.

"reference" is PyTorch in fp32; with int8 and fp8 it is the model simulated by functional.py. Where there is no GPU,
Triton's interpreter runs the kernels, of digit-pairs on the first INTERPRETED pictures only: it takes 2 to 4 seconds
for one of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformer_fast.engines.registry import BACKENDS, make, runner
from conformer_fast.errors import BackendError
from conformer_fast.inference.lower import lower
from conformer_fast.model.outputs import SUM
from conformer_fast.verification.implementations import Job, run

from .cpu import identity
from .trained import Trained, trained

MODELS = ("digits", "digit-pairs")
PATHS = (
    ("reference", "fp32"),
    ("native", "int8"),
    *(("openvino", precision) for precision in ("fp32", "bf16", "int8")),
    *(("onnxruntime", precision) for precision in ("fp16", "int8", "fp8")),
    *(("simulated", precision) for precision in ("int8", "fp8")),
    *(("kernels", precision) for precision in ("fp16", "int8", "fp8")),
)
INTERPRETED = {"digit-pairs": 1000}
TOGETHER, BY_PYTORCH = 1000, 100  # images at a time: an engine is made for each batch


def main(path: Path, asked: Sequence[str]) -> None:
    paths = [taken for taken in PATHS if not asked or taken[0] in asked]
    unknown = set(asked) - {implementation for implementation, _ in paths}
    if unknown:
        raise SystemExit(f"no implementation {', '.join(sorted(unknown))}; there are {', '.join(dict(PATHS))}")
    runner("kernels").prepare()
    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for row in _rows(trained(name, Path(folder)), paths, INTERPRETED.get(name)):
                rows.append({"model": name, **row})
                print(rows[-1], flush=True)
    path.write_text(json.dumps({**identity(), "rows": rows}, indent=1) + "\n")


def _rows(subject: Trained, paths: Sequence[tuple[str, str]], interpreted: int | None) -> Iterator[dict[str, Any]]:
    images, labels = subject.images()
    exact = chosen("reference", "fp32", subject, images)
    for implementation, precision in paths:
        fewer = interpreted if implementation == "kernels" and runner("kernels").slow() else None
        count = len(images[:fewer])
        row: dict[str, Any] = {"implementation": implementation, "precision": precision, "count": count}
        try:
            found = chosen(implementation, precision, subject, images[:count])
        except BackendError as error:
            yield {**row, "missing": str(error)}
            continue
        row["correct"] = int((found == labels[:count]).sum())
        row["reference_correct"] = int((exact[:count] == labels[:count]).sum())
        row["agreement"] = int((found == exact[:count]).sum())
        yield row


def chosen(implementation: str, precision: str, subject: Trained, images: Tensor) -> Tensor:
    """The class of each image (B,) by one of PATHS. Raises BackendError when it cannot run here."""
    missing = make(implementation).missing() if implementation in BACKENDS else None
    if missing:
        raise BackendError(f"no {implementation}: {missing}")
    at_once = BY_PYTORCH if implementation in ("reference", "simulated") else TOGETHER
    return torch.cat([_scores(implementation, precision, subject, part).argmax(-1) for part in images.split(at_once)])


@torch.no_grad()
def _scores(implementation: str, precision: str, subject: Trained, images: Tensor) -> Tensor:
    model = subject.model
    if implementation == "reference":
        return model(images).logits
    if implementation == "simulated":
        return lower(model, [SUM], quantization=subject.quantizations[precision])(images)[0]
    quantizations = {name: given for name, given in subject.quantizations.items() if name == precision}
    return run(implementation, precision, Job(model, images, (SUM,), (), quantizations)).values[SUM]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
