"""Memory, descriptors and threads stay as they are while models are compiled, loaded, run and dropped.

The cycles are in tests/leaks.py.
"""

import os

import pytest
from effort import EFFORT
from own_process import run

pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytestmark = [pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc"), pytest.mark.slow]

KB = 4000  # that memory may grow by in half of the cycles, however many: one huge page more is 2,048, an engine 1,900
SOAK_KB = 30_000  # the same where up to 18 engines come and go at moments of their own; 40 are loaded in that time
CYCLES = {  # of compiling and dropping more than 2,000 in `make hostile`
    "reference": 12 * EFFORT,
    "openvino": 16 * EFFORT,
    "built": 6 * EFFORT,
    "loaded": 8 * EFFORT,
    "soaked": 6 * EFFORT,
}


def test_nothing_is_left(tmp_path, tried, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    found = run("leaks.py", *(value for case in CYCLES.items() for value in case))
    assert found.keys() == CYCLES.keys()
    for case, taken in found.items():
        assert taken["KB"] < (SOAK_KB if case == "soaked" else KB), (case, taken)
        assert len({*taken["descriptors"]}) == len({*taken["threads"]}) == 1, (case, taken)
    counts = {
        "of PyTorch": CYCLES["reference"],
        "of OpenVINO": CYCLES["openvino"],
        "with an empty cache": CYCLES["built"],
        "of a bundle": CYCLES["loaded"],
    }
    tried("engines made, run and dropped: nothing is left", counts)
    tried("four threads, two engines, mixed sizes: right and nothing is left", {"calls": 16 * CYCLES["soaked"]})
