"""What the builder asks of TensorRT, on a pretended module of it: each call, and what is left after a failure."""

import gc
import warnings

import pytest
from fake_tensorrt_builder import pretended
from plan_samples import DYNAMIC, FIXED

from conformer_fast.engines.tensorrt import timing_cache
from conformer_fast.engines.tensorrt.plan import engine_from_onnx
from conformer_fast.errors import EngineError

pytestmark = pytest.mark.usefixtures("_quick_collections", "gpu")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("version", "flags"), [("10.12.0", 2), ("10.13.3.9", 2), ("11.0.0", 0), ("11.4.1", 0)])
def test_tensorrt_builds_for_the_gpu_here(version, flags, gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(version)
    assert engine_from_onnx(b"graph", [DYNAMIC, FIXED], flavor) == b"plan"
    assert flavor.module.calls == [
        ("network", flags),
        "TF32 is off",
        ("images", (1, 3, 32, 48), (2, 3, 64, 64), (4, 3, 224, 224)),
        ("images", (1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)),
        ("timings", []),
        ("build", 2),
    ]


def test_timings_go_from_build_to_build(gpu, own_cache):
    gpu((8, 6))
    for known in ([], [b"measured"]):
        flavor = pretended()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine_from_onnx(b"graph", [FIXED], flavor)
        assert ("timings", known) in flavor.module.calls
    assert timing_cache.file_for(flavor).read_bytes() == b"measured"


def test_a_build_that_failed_keeps_no_timings(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(fails="build")
    with pytest.raises(EngineError):
        engine_from_onnx(b"graph", [FIXED], flavor)
    assert not timing_cache.file_for(flavor).exists()


FAILURES = {
    "builder": r".*factory function returned nullptr; TensorRT's logger said nothing",
    "parse": r"node 3 is odd; node 4 is odder",
    "profile": r"Shapes\(batch=\(1, 1, 1\), .* was refused",
    "build": r"the build failed; the log of TensorRT ends with\n\[ERROR\] no tactic is left$",
}


@pytest.mark.parametrize(("fails", "message"), FAILURES.items(), ids=FAILURES)
def test_a_failure_is_told_and_leaves_nothing_behind(fails, message, gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(fails=fails)
    with pytest.raises(EngineError, match=f"^TensorRT 10.13.0 built no engine: {message}") as caught:
        engine_from_onnx(b"graph", [FIXED], flavor)
    gc.collect()
    assert caught.value.__traceback__ is not None
    assert list(flavor.module.living) == []


def test_a_build_leaves_nothing_behind(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended()
    engine_from_onnx(b"graph", [FIXED], flavor)
    gc.collect()
    assert list(flavor.module.living) == []


def test_targets_are_set_by_age_and_once(own_cache):
    flavor = pretended("1.7.1", name="tensorrt-rtx")
    engine_from_onnx(b"graph", [FIXED], flavor, ["sm120", "SM86", "sm120"], "fp16")
    assert flavor.module.calls[3:-1] == [("SM86", 0, 2), ("SM120", 1, 2)]


def test_tensorrt_rtx_without_targets_builds_for_the_gpu_here(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended("1.7.1", name="tensorrt-rtx")
    engine_from_onnx(b"graph", [FIXED], flavor)
    assert flavor.module.calls[3:-1] == [("CURRENT", 0, 1)]


def test_a_target_that_is_refused_after_all():
    flavor = pretended("1.7.1", "target", "tensorrt-rtx")
    with pytest.raises(EngineError, match="compute capability SM86 was refused"):
        engine_from_onnx(b"graph", [FIXED], flavor, ["sm86"])
