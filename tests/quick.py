"""What `make quick` and `make test` leave out: slow tests, and all but the first cases of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEFT_OUT = (  # by `make quick`, below tests/: what runs whole models, commands or processes, or makes hundreds of files
    *("benchmarks", "bulk", "cli", "evaluation", "hostile", "serving"),
    *("calibration/test_accuracy_gate.py", "calibration/test_calibrate.py", "calibration/test_observer.py"),
    *("checkpoints/test_adopt.py", "datasets/test_hostile_data.py"),
    *(
        f"deploy/test_{name}.py"
        for name in ("benchmark", "bundle", "compile_8_bits", "detector_bundle", "fast_detector")
    ),
    *(f"deploy/test_{name}.py" for name in ("build", "build_cache", "build_calibration", "build_refused", "explain")),
    *("engines/onnx", "engines/openvino", "engines/tensorrt", "engines/test_cache_hostile.py"),
    *("engines/test_forked.py", "engines/test_module.py", "engines/triton/test_graphs_memory.py"),
    *("kernels/test_detector.py", "kernels/test_network.py", "kernels/test_regions.py", "kernels/test_suppress.py"),
    *("model/detector", "verification/test_diff.py", "verification/test_heatmap.py"),
    *("test_notebooks.py", "test_packaging.py", "test_mmdet.py", "test_pages.py", "test_site.py"),
)


def is_left_out(path: Path) -> bool:
    return path.relative_to(HERE).as_posix() in LEFT_OUT


def few_cases(items: Sequence[pytest.Item], most: int) -> Iterator[pytest.Item]:
    """So many, at most, of each test that is not marked slow."""
    seen: Counter[tuple] = Counter()
    for item in items:
        test = item.path, item.cls, item.originalname
        if not item.get_closest_marker("slow") and seen[test] < most:
            seen[test] += 1
            yield item
