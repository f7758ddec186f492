"""The packaged detector on held-out pictures in each precision of this CPU: detector_accuracy.py OUT.json.

Average precision of boxes and masks by pycocotools, of the compiled detector and of its reference, and of the compiled
one where what the reference found with a score of 0.3 or more is the truth. Run by `make bench`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import conformer_fast as cf
from conformer_fast.datasets.scattered_digits import ScatteredDigits, write_coco
from conformer_fast.engines.openvino.device import describe, native_precisions

from .cpu import identity

PICTURES, CALIBRATION = 500, 64
TEST_SEED, CALIBRATION_SEED = 1, 2  # the former is that of examples/train_detector.py


def main(path: Path) -> None:
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"], "pictures": PICTURES}
    with tempfile.TemporaryDirectory() as folder:
        report["rows"] = rows(Path(folder), PICTURES, CALIBRATION)
    path.write_text(json.dumps(report, indent=1) + "\n")


def rows(folder: Path, pictures: int, calibration: int) -> list[dict[str, Any]]:
    """What each precision finds in so many held-out pictures, which are written there."""
    detector = cf.create_detector(weights="packaged")
    for name in ("held out", "training"):
        (folder / name).mkdir()
    file = write_coco(folder / "held out", *ScatteredDigits("test", TEST_SEED).draw(pictures))
    write_coco(folder / "training", *ScatteredDigits("train", CALIBRATION_SEED).draw(calibration))
    found = []
    for precision in (*native_precisions(), "int8"):
        quantization = folder / "training" if precision == "int8" else None
        fast = cf.compile(detector, backend="openvino", precision=precision, quantization=quantization)
        judged = cf.evaluate_detector(fast, file, folder / "held out", reference=detector)
        of_each = {"compiled": judged.compiled, "reference": judged.reference, "agreement": judged.agreement}
        found.append(
            {
                "precision": precision,
                **{name: {kind: values[kind].ap for kind in values} for name, values in of_each.items()},
            }
        )
        print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
