"""The command that lists kept engines starts without PyTorch, so nothing that it imports may need it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conformer_fast.storage

STORAGE = sorted(file.stem for file in Path(conformer_fast.storage.__file__).parent.glob("[!_]*.py"))


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "numpy", "safetensors", "PIL")))  # None: importing it raises ImportError
"""


def run(code, folder):
    """What the code prints without them, with its cache in the folder."""
    environment = os.environ | {"CONFORMER_FAST_CACHE": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, timeout=60, cwd=folder, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("module", ["engines.cache", *(f"storage.{name}" for name in STORAGE)])
def test_no_tensors_are_needed(module, tmp_path):
    run(f"import conformer_fast.{module}", tmp_path)


def test_engines_are_kept_and_listed_without_tensors(tmp_path):
    code = """
from conformer_fast.engines import cache
assert cache.cached({"key": 1}, lambda: b"engine") == b"engine"
print([(entry.fields, entry.size) for entry in cache.cached_engines()], cache.clear_cache() > 0)
"""
    assert run(code, tmp_path) == "[({'key': 1}, 6)] True\n"
