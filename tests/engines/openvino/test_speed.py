"""What "auto" takes on a CPU: what is measured to be fastest, once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from eight_bits import is_result

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import onnx

import conformer_fast as cf
from conformer_fast.engines import cache
from conformer_fast.engines.base import Settings
from conformer_fast.engines.openvino import device, executors, speed
from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.engines.openvino.runtime import ov
from conformer_fast.engines.timing import time_in_turn
from conformer_fast.errors import ConformerFastError

EMERALD_RAPIDS, ZEN_5 = {"bf16": 0.57}, {"bf16": 1.8}  # the first without AMX


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A CPU that lists what pretend(speeds) tells, and fp32. Returns a list as long as it was measured often."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    asked = []

    def pretend(speeds):
        for module in (device, speed):
            monkeypatch.setattr(module, "native_precisions", lambda *_: ("fp32", *speeds))
        monkeypatch.setattr(speed, "measured", lambda: asked.append(1) or speeds)
        monkeypatch.setattr(speed, "_known", {})  # as in another process
        return asked

    return pretend


@pytest.mark.parametrize(
    ("speeds", "taken", "reason"),
    [
        (EMERALD_RAPIDS, "fp32", "bf16 is 0.57x of it here (measured)"),
        (ZEN_5, "bf16", "1.80x of fp32 here (measured)"),
        ({"bf16": 1.02}, "fp32", "bf16 is 1.02x of it here (measured)"),
        (
            {"bf16": 0.57, "fp16": 1.9},
            "fp32",
            "bf16 is 0.57x of it, fp16 is 1.90x of it here (measured), and taken only if asked for: its range is small",
        ),
        ({"bf16": 1.8, "fp16": 1.9}, "bf16", "1.80x of fp32 here (measured)"),
    ],
    ids=["Emerald Rapids", "Zen 5", "hardly faster", "fp16 is faster", "both are faster"],
)
def test_the_fastest_is_taken(speeds, taken, reason, pretend, small_model):
    pretend(speeds)
    assert cf.OpenVINO(threads=2).fastest() == (taken, reason)
    fast = cf.compile(small_model, device="cpu")
    assert fast.settings.precision == taken
    assert fast.reason.startswith(f"openvino {taken}: {reason}")
    for name, ratio in speeds.items():
        assert f"{name} ({ratio:.2f}x of fp32, measured)" in str(cf.info())


def test_it_is_measured_once(pretend):
    asked = pretend(ZEN_5)
    assert speed.speeds() == speed.speeds() == ZEN_5
    pretend(EMERALD_RAPIDS)
    assert speed.speeds() == ZEN_5  # from the disk
    assert len(asked) == 1
    assert cache.clear_cache() > 0
    pretend(EMERALD_RAPIDS)
    assert speed.speeds() == EMERALD_RAPIDS
    assert len(asked) == 2


@pytest.mark.parametrize("writable", [True, False])
def test_many_threads_measure_once(writable, pretend, monkeypatch, tmp_path):
    if not writable:
        (tmp_path / "file").touch()
        monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "file"))
    asked = pretend(ZEN_5)
    waiting = threading.Barrier(6)

    def ask(_):
        waiting.wait()
        return speed.speeds()

    with (
        ThreadPoolExecutor(6) as pool,
        pytest.warns(UserWarning, match="speeds are not kept") if not writable else pool,
    ):
        assert list(pool.map(ask, range(6))) == 6 * [ZEN_5]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "kept",
    ["", "null", "[]", "{}", '{"fp16": 3.0}', '{"bf16": 2.0, "fp16": 3.0}']
    + [f'{{"bf16": {value}}}' for value in ("0.0", "-1.0", "NaN", "Infinity", "true", '"2"')],
)
def test_what_cannot_be_is_measured_again(kept, pretend, monkeypatch):
    pretend(EMERALD_RAPIDS)
    monkeypatch.setattr(speed, "remembered", lambda fields, compute, what: kept)
    assert speed.speeds() == EMERALD_RAPIDS


@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), ConformerFastError("forked")])
def test_what_cannot_be_measured_is_fp32(error, pretend, monkeypatch):
    pretend(ZEN_5)

    def fail():
        raise error

    monkeypatch.setattr(speed, "measured", fail)
    precision, reason = cf.OpenVINO().fastest()
    assert precision == "fp32"
    assert reason.startswith("nothing else could be measured here (")
    assert "\n" not in reason
    assert "available: fp32, bf16, int8" in str(cf.info())
    pretend(ZEN_5)
    assert cf.OpenVINO().fastest()[0] == "bf16"


def test_a_cpu_with_one_precision_is_not_measured(monkeypatch):
    monkeypatch.setattr(speed, "native_precisions", lambda: ("fp32",))
    monkeypatch.setattr(speed, "measured", lambda: pytest.fail("measured"))
    assert speed.speeds() == {}


@pytest.mark.slow
def test_noise_decides_little(monkeypatch):
    """Between two engines in fp32, while another thread computes: where it decides, neither gains much."""
    monkeypatch.setattr(speed, "native_precisions", lambda: ("fp32", "bf16"))
    monkeypatch.setattr(speed, "PRECISIONS", {"fp32": "f32", "bf16": "f32"})
    ended = threading.Event()

    def work():
        a = torch.randn(400, 400)
        while not ended.is_set():
            a @ a

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = sorted(speed.measured()["bf16"] for _ in range(3))
    finally:
        ended.set()
        thread.join()
    assert 0.8 < found[1] < 1.15, found


def test_a_small_engine_is_its_own_whoever_else_makes_one(monkeypatch):
    """While one is compiled, another is made."""
    options = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}

    class Core:
        def compile_model(self, model, device, options):
            if model == "first":
                made.append(executors.compile_for_good("second", options))
            return model

    class Kept(list):
        def append(self, compiled):
            super().append(compiled)
            if compiled == "first":
                super().append("another thread's")

    made = []
    monkeypatch.setattr(executors, "core", Core)
    monkeypatch.setattr(executors, "_kept", Kept())
    assert executors.compile_for_good("first", options) == "first"
    assert made == ["second"]


def test_the_rest_of_int8_is_in_it(pretend, small_model, tmp_path):
    """And a bundle keeps what it was built with, whatever is measured later: nothing is built for it."""
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for speeds, rest, later in ((EMERALD_RAPIDS, "fp32", ZEN_5), (ZEN_5, "bf16", EMERALD_RAPIDS)):
        cache.clear_cache()
        pretend(speeds)
        fast = cf.compile(small_model, backend="openvino", precision="int8", quantization=[batch])
        expected = fast(batch)
        assert {entry.fields["rest"] for entry in cache.cached_engines() if "rest" in entry.fields} == {rest}
        folder = fast.save(tmp_path / rest)
        cache.clear_cache()
        pretend(later)
        loaded = cf.load(folder)
        assert loaded.manifest.precisions == {"products": "int8", "the rest": rest}
        assert torch.equal(loaded(batch).logits, expected.logits)
        assert not cache.cached_engines()


def test_a_bundle_whose_attention_reads_8_bits_keeps_fp32_on_other_cpus(pretend, small_model, monkeypatch, tmp_path):
    """In bf16 with AMX OpenVINO computes it wrongly where there are as many tokens as a head has channels."""
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pretend(EMERALD_RAPIDS)
    fast = cf.compile(small_model, backend="openvino", precision="int8", quantization=[batch])
    fast(batch)
    folder = fast.save(tmp_path / "bundle")
    cache.clear_cache()
    pretend(ZEN_5)
    monkeypatch.setattr(device, "describe", lambda *_: {"device": "another"})
    loaded = cf.load(folder)
    assert loaded._engine.computed.rest == "fp32"
    assert torch.equal(loaded(batch).logits, fast(batch).logits)


def test_attention_reads_8_bits_where_it_would_be_in_fp32(pretend, small_model, monkeypatch):
    """And elsewhere the graph is that of a quantization without ranges for it."""
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quantization = cf.calibrate(small_model, [batch])
    plain = {name: value for name, value in quantization.ranges.items() if not is_result(name)}
    assert len(quantization.ranges) - len(plain) == small_model.config.depth

    def pairs(given: cf.Quantization) -> int:
        graph = cf.OpenVINO().graph(small_model, Settings(cf.OpenVINO(), "int8", "cpu", given), ("logits",))
        return sum(node.op_type == "QuantizeLinear" for node in onnx.load_model_from_string(graph).graph.node)

    without = replace(quantization, ranges=plain)
    pretend(EMERALD_RAPIDS)
    assert pairs(quantization) - pairs(without) == small_model.config.depth
    cache.clear_cache()
    pretend(ZEN_5)
    assert pairs(quantization) == pairs(without)
    hashes = set()
    for rest in ("fp32", "bf16", "fp32"):  # what is remembered of one is not the other's
        monkeypatch.setattr(cf.OpenVINO, "fastest", lambda self, rest=rest: (rest, "as told"))
        fast = cf.compile(small_model, backend="openvino", precision="int8", quantization=quantization)
        fast(batch)
        hashes.add(fast._engine.network().onnx)
    assert len(hashes) == 2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("gain", "streams"), [(1.1, "2"), (0.97, "2"), (0.8, "1")])
def test_images_run_side_by_side_unless_that_is_slower(gain, streams, small_model, monkeypatch, two_threads):
    asked, loaded, load = [], [], ov.Core.import_model
    monkeypatch.setattr(speed, "split_gain", lambda *given: asked.append(given) or gain)
    monkeypatch.setattr(ov.Core, "import_model", lambda *given: loaded.append(given[-1]["NUM_STREAMS"]) or load(*given))
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fast = cf.compile(small_model, backend="openvino", precision="fp32")
    fast(batch[:1])
    assert not asked  # one image has all threads
    for _ in range(2):
        torch.testing.assert_close(fast(batch).logits, small_model.eval()(batch).logits, rtol=1e-4, atol=1e-4)
    assert set(asked) == {(2, "fp32")}
    assert set(loaded) == {"1", streams}
    asked.clear()
    cf.compile(small_model, backend="openvino", precision="fp32", threads=2)(batch)
    assert loaded[-1] == "2"  # as asked
    assert not asked


def test_the_split_is_measured_once(monkeypatch, tmp_path):
    """And what another version has kept, or a failure, costs nothing but the measurement."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(speed, "measured_split", lambda *given: asked.append(given) or 1.25)
    for _ in range(2):
        monkeypatch.setattr(speed, "_splits", {})  # as in another process
        assert speed.split_gain(2, "fp32") == speed.split_gain(2, "fp32") == 1.25
    assert asked == [(2, "fp32")]
    for kept in ("nonsense", "[1]", "-1.0", "NaN"):
        monkeypatch.setattr(speed, "_splits", {})
        monkeypatch.setattr(speed, "remembered", lambda *_, kept=kept: kept)
        assert speed.split_gain(2, "fp32") == 1.25
    monkeypatch.setattr(speed, "_splits", {})
    monkeypatch.setattr(speed, "remembered", lambda *_: (_ for _ in ()).throw(RuntimeError("no room")))
    assert speed.split_gain(2, "fp32") == 1.0


@pytest.mark.slow
@pytest.mark.skipif(len(native_precisions()) == 1, reason="this CPU computes in fp32 alone")
def test_auto_is_the_fastest_here(record_property):
    """Of a whole model at batch 1 and 8, within 5 % of the best."""
    model = cf.create_model("tiny-p16")
    taken, _ = cf.OpenVINO().fastest()
    engines = {name: cf.compile(model, backend="openvino", precision=name) for name in native_precisions()}
    candidates = {taken: engines.pop(taken), **engines}
    for batch in (1, 8):
        timings = time_in_turn(candidates, torch.randn(batch, 3, 224, 224), 7)
        best = max(timing.speedup for timing in timings.values())
        record_property("table", ("speed of the best precision over auto's", "tiny-p16", f"B{batch}", best))
        assert best < 1.05
