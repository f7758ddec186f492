"""What "auto" takes on a CPU: what is measured to be fastest, once."""

import json

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import conformer_fast as cf
from conformer_fast.engines import cache
from conformer_fast.engines.openvino import cpu, speed
from conformer_fast.engines.openvino.cpu import native_precisions
from conformer_fast.engines.timing import time_in_turn

EMERALD_RAPIDS = {"fp32": 5.6e-3, "bf16": 9.4e-3}  # without AMX
ZEN_5 = {"fp32": 5.6e-3, "bf16": 3.1e-3}


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A CPU with bf16 that takes so long: pretend(seconds). Returns how often it was measured."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "native_precisions", lambda: ("fp32", "bf16"))
    asked = []

    def pretend(seconds):
        monkeypatch.setattr(speed, "measured", lambda threads: asked.append(threads) or seconds)
        speed.seconds_by_precision.cache_clear()
        return asked

    yield pretend
    speed.seconds_by_precision.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "taken", "times"),
    [(EMERALD_RAPIDS, "fp32", 0.6), (ZEN_5, "bf16", 1.81), ({"fp32": 5e-3, "bf16": 4.9e-3}, "fp32", 1.02)],
    ids=["Emerald Rapids", "Zen 5", "hardly faster"],
)
def test_the_fastest_is_taken(seconds, taken, times, pretend):
    pretend(seconds)
    assert speed.fastest(2) == taken
    assert speed.speeds(2) == {"fp32": 1.0, "bf16": times}
    assert cf.OpenVINO(threads=2).fastest() == taken


def test_it_is_measured_once_for_a_number_of_threads(pretend):
    asked = pretend(ZEN_5)
    for threads in (2, 2, 1, 2):
        speed.fastest(threads)
    assert asked == [2, 1]
    pretend(EMERALD_RAPIDS)  # as in another process: what is on disk holds
    assert speed.fastest(2) == "bf16"
    assert asked == [2, 1]
    assert cache.clear_cache() > 0
    pretend(EMERALD_RAPIDS)
    assert speed.fastest(2) == "fp32"
    assert asked == [2, 1, 2]


def test_a_cpu_with_one_precision_is_not_measured(monkeypatch):
    monkeypatch.setattr(speed, "native_precisions", lambda: ("fp32",))
    monkeypatch.setattr(speed, "measured", lambda threads: pytest.fail("measured"))
    speed.seconds_by_precision.cache_clear()
    assert speed.fastest(3) == "fp32"
    speed.seconds_by_precision.cache_clear()


def test_what_is_measured():
    """Positive seconds of every precision, in well under a second; JSON, as it is kept."""
    found = speed.measured(1)
    assert tuple(found) == native_precisions()
    assert all(0 < seconds < 1 for seconds in found.values())
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("seconds", "rest"), [(EMERALD_RAPIDS, "fp32"), (ZEN_5, "bf16")], ids=["slow", "fast"])
def test_the_rest_of_int8_is_in_it(seconds, rest, pretend, small_model, tmp_path, monkeypatch):
    """And a bundle keeps what it was built with, whatever is measured later: nothing is built for it."""
    monkeypatch.setattr(cpu, "native_precisions", lambda: ("fp32", "bf16"))
    pretend(seconds)
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fast = cf.compile(small_model, backend="openvino", precision="int8", quantization=[batch])
    expected = fast(batch)
    assert {entry.fields["rest"] for entry in cache.cached_engines()} == {rest}
    folder = fast.save(tmp_path / "bundle")
    assert cache.clear_cache() > 0
    pretend({"fp32": ZEN_5["bf16"], "bf16": ZEN_5["fp32"]} if rest == "bf16" else ZEN_5)
    loaded = cf.load(folder)
    assert loaded.manifest.precisions == {"products": "int8", "the rest": rest}
    assert torch.equal(loaded(batch).logits, expected.logits)
    assert not cache.cached_engines()


@pytest.mark.slow
@pytest.mark.skipif(len(native_precisions()) == 1, reason="this CPU computes in fp32 alone")
def test_auto_is_the_fastest_here(record_property):
    """Of a whole model at batch 1 and 8, within 5 % of the best."""
    model = cf.create_model("tiny-p16")
    for batch in (1, 8):
        images = torch.randn(batch, 3, 224, 224)
        candidates = {
            precision: cf.compile(model, backend="openvino", precision=precision) for precision in native_precisions()
        }
        medians = {name: timing.median for name, timing in time_in_turn(candidates, images, 7).items()}
        ratio = min(medians.values()) / medians[cf.OpenVINO().fastest()]
        record_property("table", ("best precision's time over auto's", "tiny-p16", f"B{batch}", ratio))
        assert ratio > 0.95
