"""csrc/ under AddressSanitizer and UndefinedBehaviorSanitizer: hostile sizes through every pass and every check,
convolutions at every border, and the steps of 8 bits by their own tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from effort import EFFORT

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

SCRIPT = """
import itertools, sys
import numpy as np
from PIL import Image

sys.path.insert(0, sys.argv[1])
import _C

random = np.random.default_rng(0)
LARGEST, LEAST = 2**31 - 1, -(2**31)

def refused(call, *arguments):
    try:
        call(*arguments)
    except (ValueError, TypeError):
        return
    raise AssertionError(arguments)

for width in (0, -1, LEAST, LARGEST + 1):
    refused(_C.strip_spare_rows, width)
assert [_C.strip_spare_rows(width) for width in (1, 16, LARGEST)] == [17, 2, 1]

def strips(picture, rows):
    width, height = picture.size
    spare = _C.strip_spare_rows(width)
    cut = [picture.crop((0, top, width, top + rows + spare)) for top in range(0, height, rows)]
    return [strip.convert("RGB").__arrow_c_array__() for strip in cut]

def resampled(pixels, place, size, instructions, vertical_first, channels_last, dtype):
    shape = (2, size, size, 3) if channels_last else (2, 3, size, size)
    values = None if dtype == np.uint8 else np.arange(3 * 256).reshape(3, 256).astype(dtype)
    out = np.empty(shape, dtype)
    _C.resample([(pixels, *place, vertical_first)] * 2, out, channels_last, values, 3, instructions)
    return out

SIDES = [(1, 1), (1, 97), (97, 1), (2, 3), (5, 64), (21, 22), (130, 67)]
NEW = [(1, 1, 1), (1, 7, 1), (2, 2, 2), (33, 31, 17), (300, 9, 8), (64, 64, 64)]  # new width and height, size
LAYOUTS = [(False, np.uint8), (True, np.uint16), (False, np.float32)]
cases = [(*case, first) for case in itertools.product(SIDES, NEW) for first in (False, True)]
for _ in range(20 * int(sys.argv[2])):
    new = random.integers(1, 140, 2).tolist()
    case = random.integers(1, 140, 2).tolist(), (*new, int(random.integers(1, min(new) + 1))), bool(random.integers(2))
    cases.append(case)
for (width, height), (new_width, new_height, size), vertical_first in cases:
    array = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    given = [array]
    if hasattr(picture, "__arrow_c_array__"):
        given += [picture.__arrow_c_array__(), strips(picture, 1), strips(picture, height)]
    for left, top in {(0, 0), (new_width - size, new_height - size)}:
        place = width, height, new_width, new_height, left, top
        for channels_last, dtype in LAYOUTS:
            expected = None
            for pixels, instructions in itertools.product(given, _C.instruction_sets()):
                found = resampled(pixels, place, size, instructions, vertical_first, channels_last, dtype)
                expected = found if expected is None else expected
                assert np.array_equal(found, expected), (place, size, instructions)

pixels, out = np.zeros((6, 8, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)
sides, places = ((8, 0, -1, LEAST), (6, LEAST), (8, 3, LEAST), (6, LEAST)), ((0, -1, LARGEST), (0, LARGEST))
for place in itertools.product(*sides, *places):
    if place != (8, 6, 8, 6, 0, 0):
        refused(_C.resample, [(pixels, *place, False)], out, True, None, 1)
whole = [(pixels, 8, 6, 8, 6, 0, 0, False)]

def askew(*shape):
    return np.zeros(1 + 4 * int(np.prod(shape)), np.uint8)[1:].view(np.float32).reshape(shape)

refused(_C.resample, whole, askew(1, 4, 4, 3), True, np.zeros((3, 256), np.float32), 1)
refused(_C.resample, whole, np.zeros((1, 4, 4, 3), np.float32), True, askew(3, 256), 1)
refused(_C.resample, whole, out, True, None, 0)
refused(_C.resample, whole, out, True, None, 1, "none")
_C.resample([], np.zeros((0, 4, 4, 3), np.uint8), True, None, LARGEST)
_C.resample(whole, out, True, None, LARGEST)

for images, height, width in [(0, 3, 3), (1, 1, 1), (2, 3, 5), (1, 4, 9), (1, 30, 61)]:
    maps = random.standard_normal((images, height, width, 32), np.float32)
    weights = _C.winograd_weights(random.standard_normal((64, 32, 3, 3), np.float32))
    for instructions, threads in itertools.product(_C.instruction_sets(), (1, 3)):
        out = np.full((images, height, width, 64), np.nan, np.float32)
        _C.winograd(maps, weights, np.ones(64, np.float32), True, out, threads, instructions)
        assert np.isfinite(out).all()
print(len(cases))
"""

STEPS = """
import sys
sys.path[:0] = sys.argv[1:3]
import conformer_fast, pytest, _C
conformer_fast._C = sys.modules["conformer_fast._C"] = _C
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[3:]]))
"""  # of 8 bits, by their own tests


def _library(name: str) -> str:
    """Its path where the compiler has it, else its name alone."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, timeout=60)
    return found.stdout.strip()


@pytest.mark.slow
def test_hostile_sizes_break_nothing(tmp_path, tried):
    pybind11 = pytest.importorskip("pybind11")
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("no GCC for Linux here")
    runtimes = [_library("libasan.so"), _library("libstdc++.so")]  # in front of Python, which is built without
    if not all(map(os.path.isabs, [*runtimes, _library("libubsan.so")])):
        pytest.skip(f"{COMPILER} has no AddressSanitizer or no UndefinedBehaviorSanitizer")
    headers = [f"-I{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]
    flags = ["-std=c++17", "-O0", "-g1", "-fPIC", "-pthread", "-ffp-contract=off", "-fvisibility=hidden", *SANITIZED]

    sources = sorted(CSRC.glob("*.cpp"))
    subprocess.run([COMPILER, *flags, *headers, "-shared", *sources, "-o", tmp_path / "_C.so"], check=True)

    def run(script: str, *arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), *map(str, arguments)],
            env={**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    tried("csrc under AddressSanitizer and UBSan: pictures resampled", {"sizes": int(run(SCRIPT, EFFORT))})
    tests = CSRC.parent / "tests"
    run(STEPS, tests, *(tests / "engines" / "native" / f"test_{name}.py" for name in ("steps", "runs")))
