"""The GPU suite's command line, and where it cannot run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conformer_fast as cf
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import steps
from benchmarks.gpu.session import PEERS

ROOT = Path(__file__).parents[3]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def test_the_suite_starts_where_nothing_of_ours_is_installed():
    code = "import sys; sys.modules['conformer_fast'] = None; import benchmarks.gpu.__main__"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_without_a_gpu_it_says_so(tmp_path):
    options = ["STEPS=ours peers", "BATCH=1 8", "SECONDS=60", "RESUME=old.json"]
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'out'}", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks.gpu ours peers --out" in done.stdout
    assert "--batch 1 8" in done.stdout
    assert "--seconds 60 --resume old.json" in done.stdout
    assert "the GPU suite cannot run here: PyTorch" in done.stderr
    assert "sees no CUDA device" in done.stderr
    assert "Error 2" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("found", "reason"), [("2.10.1", "torch is 2.10.1, it needs 2.11"), (None, "is not installed")]
)
def test_old_versions_are_named(monkeypatch, found, reason):
    def version(package):
        if found is None:
            raise suite.PackageNotFoundError
        return found

    monkeypatch.setattr(suite, "version", version)
    assert reason in suite.unusable()


def test_command_line(capsys):
    options = suite.parser().parse_args([])
    assert (options.steps, options.seconds) == ([], 530)
    assert options.variants == steps.VARIANTS == tuple(cf.VARIANTS)
    assert steps.WHOLE[:4] == ["check", "executor", "ceilings", "headline"]
    assert steps.WHOLE[-1] == "autotune"
    assert PEERS[-1] == steps.AUTOTUNE
    options = suite.parser().parse_args(["ours", "peers", "--variants", "tiny-p16", "--batch", "1", "8"])
    assert (options.steps, options.variants, options.batch) == (["ours", "peers"], ["tiny-p16"], [1, 8])
    with pytest.raises(SystemExit):
        suite.parser().parse_args(["speed"])
    assert "'speed' is no step; there are check, executor" in capsys.readouterr().err
