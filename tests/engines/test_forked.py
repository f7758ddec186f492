"""A process forked from one whose engines have run: Gunicorn's preloaded workers, Celery's, a DataLoader's."""

import os
import subprocess
import sys

import pytest

import conformer_fast as cf
from conformer_fast.engines.base import Settings
from conformer_fast.engines.module import EngineModule
from conformer_fast.model.outputs import LOGITS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")]

SCRIPT = """
import os, signal, sys, threading, warnings, torch
torch.set_num_threads(2)
import conformer_fast as cf

model = cf.create_model("digits", weights="packaged")
images, larger = torch.rand(8, 3, 32, 32), torch.rand(1, 3, 48, 48)
options = {"backend": "BACKEND", "precision": "fp32"}
if "BACKEND" == "native":
    options = {"backend": "BACKEND", "precision": "int8", "quantization": cf.calibrate(model, [images])}
fast = cf.compile(model, **options)
expected = fast(images).logits
AT_FORK
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status))
signal.alarm(60)  # ends a child that hangs
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for again in range(2):
        torch.testing.assert_close(fast(images).logits, expected, rtol=1e-4, atol=1e-4)
    assert fast(larger).logits.isfinite().all()
    made_here = cf.compile(model, **options)(images).logits
torch.testing.assert_close(made_here, expected, rtol=1e-4, atol=1e-4)
print(*[warning.message for warning in caught], sep=chr(10))
sys.exit(0)  # with all that Python does at its end
"""
# Another thread is in the middle of building an engine when the process forks, and has its locks.
BUILDING = """
from conformer_fast.engines.openvino import engine
cached, parent, begun = engine.cached, os.getpid(), threading.Event()

def waits_in_the_parent(*asked):
    if os.getpid() == parent:
        begun.set()
        threading.Event().wait()
    return cached(*asked)

engine.cached = waits_in_the_parent
threading.Thread(target=fast, args=[larger], daemon=True).start()
assert begun.wait(60)
"""


@pytest.mark.parametrize("backend", ["native", "openvino", "reference"])
def test_an_engine_that_has_run_runs_in_a_forked_process(backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    if backend == "native" and cf.Native().missing():
        pytest.skip(cf.Native().missing())
    script = SCRIPT.replace("BACKEND", backend).replace("AT_FORK", BUILDING if backend == "openvino" else "")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    (said,) = (line for line in run.stdout.splitlines() if "8 different images" not in line)  # of int8
    assert "was forked from" in said
    assert "start processes by 'spawn'" in said


def test_threads_of_engines_that_are_gone_are_not_waited_for_in_a_forked_process():
    """OpenVINO gives them to the next engine with the same options."""
    pytest.importorskip("openvino")
    script = """
import os, signal, torch
import conformer_fast as cf
model = cf.create_model("digits", weights="packaged")
fast, other = (cf.compile(model, backend="openvino", precision="fp32", threads=1) for _ in range(2))
images = torch.rand(1, 3, 32, 32)
fast(images), other(images)
del other
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)  # ends a child that hangs
try:
    fast(images)
except cf.ConformerFastError as error:
    print(error, flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "where OpenVINO's engines have run and gone" in run.stdout


def test_an_engine_of_a_gpu_says_that_it_cannot_go_on_after_a_fork(small_config, monkeypatch):
    settings = Settings(cf.Triton(), "fp16", "cuda:0")
    module = EngineModule(lambda images: pytest.fail("ran"), settings, "", small_config, "stem", LOGITS, LOGITS)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    with pytest.raises(cf.ConformerFastError, match=r"process 0 was forked.*start processes by 'spawn'"):
        module(None)


def test_a_forked_process_ends_that_was_told_of_missing_threads():
    """It has opened OpenVINO by then, and waited for ever when that was closed."""
    pytest.importorskip("openvino")
    script = """
import gc, os, signal, sys, torch
import conformer_fast as cf
model, images = cf.create_model("digits", weights="packaged"), torch.rand(2, 3, 64, 64)
fast = cf.compile(model, backend="openvino", precision="fp32")
fast(images)
del fast
gc.collect()
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status))
signal.alarm(20)  # ends a child that hangs
try:
    cf.compile(model, backend="openvino", precision="fp32")(images)
except cf.ConformerFastError:
    sys.exit(0)  # with all that Python does at its end
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_what_computes_without_an_engine_runs_in_a_forked_process(tmp_path):
    script = """
import os, signal, sys, warnings, torch
torch.set_num_threads(2)
import conformer_fast as cf
model = cf.create_model("tiny-p16")
cf.save_weights(model.state_dict(), "before.safetensors")
fast = cf.compile(cf.create_model("digits", weights="packaged"), backend="reference")
fast(torch.rand(8, 3, 64, 64))
for call in (
    lambda: cf.save_weights(model.state_dict(), "after.safetensors"),
    lambda: cf.load_weights(model, "before.safetensors"),
    lambda: cf.convert("before.safetensors", "converted.safetensors"),
    lambda: cf.evaluate(fast, sys.argv[1], workers=0, batch=12),
):
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends a child that hangs
        warnings.simplefilter("ignore")
        call()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    from PIL import Image

    for index in range(20):
        folder = tmp_path / "data" / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (index, 0, 0)).save(folder / f"{index}.png")
    command = [sys.executable, "-c", script, tmp_path / "data"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
