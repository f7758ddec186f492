"""benchmark(): compiled models beside their references."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import conformer_fast as cf
from conformer_fast.deploy import benchmark as benchmark_module
from conformer_fast.engines import busy
from conformer_fast.engines.base import Precisions
from conformer_fast.engines.ceiling import Ceiling
from conformer_fast.engines.registry import make
from conformer_fast.engines.rounds import ENOUGH

TEN = 10
ROW = cf.Benchmark("digits", 2, 64, "openvino", "fp32", "cpu", 2, (3.0,) * TEN, (2.0,) * TEN)


class Idle:
    """A machine of two cores that others leave alone."""

    cores = 2

    def used(self):
        return 0.0


@pytest.fixture
def timed(monkeypatch):
    """What was timed: the compiled model, the images' shape and the rounds. The reference takes 3 s, the model 2 s."""
    calls = []

    def seconds_in_turn(candidates, images, rounds, after):
        assert list(candidates) == ["reference", "compiled"]
        for call in candidates.values():
            call(images)
        for _ in range(rounds):
            after()
        calls.append((candidates["compiled"], tuple(images.shape), rounds))
        return {"reference": [3.0] * rounds, "compiled": [2.0] * rounds}

    monkeypatch.setattr(benchmark_module, "seconds_in_turn", seconds_in_turn)
    monkeypatch.setattr(busy, "Others", Idle)
    monkeypatch.setattr(busy, "allowed", lambda: 64.0)
    monkeypatch.setattr(cf.Reference, "ceiling", lambda self, precision, device: None)
    monkeypatch.setattr(cf.OpenVINO, "ceiling", lambda self, precision, device: None)
    return calls


def test_a_row_for_each_model_and_batch(timed):
    seen = []
    rows = cf.benchmark(["digits", "digits"], [1, 3], backend="reference", rounds=4, each=seen.append)
    assert [(row.model, row.batch, row.size) for row in rows] == [("digits", 1, 64), ("digits", 3, 64)] * 2
    assert [(shape, rounds) for _, shape, rounds in timed] == [((1, 3, 64, 64), 4), ((3, 3, 64, 64), 4)] * 2
    assert seen == rows
    row = rows[1]
    assert (row.backend, row.precision, row.device) == ("reference", "fp32", "cpu")
    assert (row.reference_rounds_ms, row.compiled_rounds_ms) == ((3000,) * 4, (2000,) * 4)
    assert (row.reference_ms, row.compiled_ms, row.speedup) == (3000, 2000, 1.5)
    assert row.images_per_second == 1.5
    assert row.others == 0
    figures = ["3000.0", "2000.0", "1.5", "1.50x", "-", "-", "-"]
    assert str(row).split() == ["digits", "3", *figures, "reference", "fp32"]


def test_each_model_at_its_own_size(timed):
    """What its recipe says, else what such models are trained on; unless another is asked for."""
    own = cf.create_model("digits")
    own.recipe = cf.Recipe(size=48)
    other = cf.ConformerConfig(patch_size=32, channel_ratio=1, embed_dim=48, num_heads=2, depth=3, num_classes=5)
    rows = cf.benchmark([own, "digits", other], [2], backend="reference", rounds=1)
    assert [(row.model, row.size) for row in rows] == [("digits", 48), ("digits", 64), ("custom", 224)]
    (row,) = cf.benchmark([own], [2], size=32, backend="reference")
    assert (row.size, timed[-1][1]) == (32, (2, 3, 32, 32))


def test_a_given_model_is_left_alone(timed, monkeypatch):
    own, taken = cf.create_model("digits", features_only=True), []
    compile = benchmark_module.compile
    monkeypatch.setattr(
        benchmark_module, "compile", lambda model, **options: taken.append(model) or compile(model, **options)
    )
    cf.benchmark([own], [1], backend="reference", rounds=1)
    assert taken[0] is not own
    assert all(map(torch.equal, taken[0].parameters(), own.parameters()))
    with pytest.raises(cf.ArgumentError, match="training mode"):
        cf.benchmark([own.train()], [1], backend="reference")


@pytest.mark.skipif(make("openvino").missing() is not None, reason="needs OpenVINO")
def test_8_bits_are_the_usual_ones_or_those_given(timed):
    cf.benchmark(["digits"], [1], backend="openvino", precision="int8")
    usual = timed[0][0].settings.quantization
    images = [torch.randn(1, 3, 64, 64)]
    assert usual.ranges.keys() == cf.calibrate(cf.create_model("digits"), images).ranges.keys()
    given = cf.Quantization("int8", {"conv_1.conv1": 2.0})
    cf.benchmark(["digits"], [1], backend="openvino", precision="int8", quantization=given)
    assert timed[1][0].settings.quantization == given


def test_an_engine_of_certain_shapes_takes_all_batches(monkeypatch):
    """It is compiled once a model, for the largest batch."""
    asked = []

    def compile(model, *, backend, precision, quantization):
        asked.append(backend)
        raise cf.BackendError("enough")

    monkeypatch.setattr(benchmark_module, "compile", compile)
    monkeypatch.setattr(cf.TensorRT, "missing", lambda self: None)
    monkeypatch.setattr(cf.TensorRT, "precisions", lambda self: Precisions(("fp16",), ("int8",)))
    with pytest.raises(cf.BackendError, match="enough"):
        cf.benchmark(["digits"], [4, 1, 8], size=96, backend="tensorrt")
    assert asked == [cf.TensorRT(cf.Shapes((1, 8, 8), (96,) * 3, (96,) * 3))]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="unknown Conformer 'huge'"):
        cf.benchmark(["huge"])
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        cf.benchmark(["digits"], backend="cuda")


def test_a_size_below_a_patch_is_refused_before_it_compiles(monkeypatch):
    monkeypatch.setattr(benchmark_module, "compile", lambda *args, **options: pytest.fail("it compiles"))
    with pytest.raises(cf.ArgumentError, match="size must be at least 16, got 8: such images are smaller than one"):
        cf.benchmark(["small-p16"], size=8, backend="reference")


def test_what_slows_down_both_leaves_the_ratio_as_it_is():
    """A machine that becomes three times as slow."""
    pace = [1 + 2 * turn / (TEN - 1) for turn in range(TEN)]
    row = replace(
        ROW, reference_rounds_ms=tuple(3 * one for one in pace), compiled_rounds_ms=tuple(2 * one for one in pace)
    )
    assert row.speedup == pytest.approx(1.5)
    assert row.speedup_spread == pytest.approx((1.5, 1.5, 1.5))
    assert row.drift > 1
    assert row.compiled_spread.high > 1.3 * row.compiled_ms
    assert (row.told_apart, row.remarks) == (True, [])


def test_a_gain_within_its_spread_is_none():
    noisy = (1.8, 2.3, 1.7, 2.2, 1.9, 2.4, 1.8, 2.3, 1.7, 2.2)
    row = replace(ROW, reference_rounds_ms=(2.1,) * TEN, compiled_rounds_ms=noisy)
    assert row.speedup == pytest.approx(1.03, abs=0.01)
    assert not row.told_apart
    (remark,) = row.remarks
    assert remark == (
        "digits, batch 2: not to tell apart from eager, between 0.91x and 1.24x; more rounds may tell them apart"
    )
    slower = replace(ROW, reference_rounds_ms=(1.0,) * TEN)
    assert (slower.told_apart, slower.remarks) == (True, [])


@pytest.mark.parametrize("rounds", [1, ENOUGH - 1])
def test_few_rounds_tell_nothing_apart(rounds):
    row = replace(ROW, reference_rounds_ms=(3.0,) * rounds, compiled_rounds_ms=(2.0,) * rounds)
    assert not row.told_apart
    assert row.drift is None
    assert row.remarks == ["digits, batch 2: fewer than 6 rounds do not tell how sure a figure is"]
    assert str(row).split()[5:8] == ["1.50x", "-", "-"]
    assert (row.as_json()["compiled_spread_ms"], row.as_json()["speedup_spread"]) == (None, None)


def test_a_wide_spread_is_shown_by_its_ends():
    """However far they are from the median."""
    row = replace(ROW, reference_rounds_ms=(3.0,) * 6, compiled_rounds_ms=(2.0, 2.0, 2.0, 2.0, 3.0, 0.1875))
    assert str(row).split()[5:7] == ["1.50x", "1.00..16.0"]


def test_the_ceiling_is_the_longer_of_products_and_bytes():
    assert (ROW.ceiling_ms, ROW.share_of_ceiling) == (None, None)
    assert replace(ROW, products_ms=1.5, bytes_ms=0.2).share_of_ceiling == 0.75
    assert replace(ROW, products_ms=0.5, bytes_ms=1.0).share_of_ceiling == 0.5


def test_a_speed_above_the_ceiling_is_shown_and_remarked_on():
    row = replace(ROW, products_ms=2.5, bytes_ms=0.1)
    assert "125%" in str(row).split()
    (remark,) = row.remarks
    assert remark.startswith("digits, batch 2: above the ceiling, which was measured too low")
    assert replace(ROW, products_ms=2.0, bytes_ms=0.1).remarks == []


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        cf.Benchmark("small-p16", 128, 224, "tensorrt", "int8", "cuda:0", 16, (99999.9,) * TEN, (9999.9,) * TEN, 1, 1),
        cf.Benchmark("small-p16", 128, 224, "tensorrt", "int8", "cuda:0", 16, (99999.9,) * TEN, (987.6,) * TEN, 1, 1),
        cf.Benchmark("base-p16", 1, 224, "openvino", "bf16", "cpu", 2, (2685.0, 2900.0) * 5, (2017.0, 2100.0) * 5),
    ],
)
def test_a_line_is_in_the_columns_and_fits_a_terminal(row):
    assert len(row.TABLE.head) <= len(str(row)) <= 100


def test_all_of_it_is_json():
    given = replace(ROW, products_ms=1.0, bytes_ms=0.5, others=0.25).as_json()
    assert given["reference_rounds_ms"] == (3.0,) * TEN
    assert given["compiled_rounds_ms"] == (2.0,) * TEN
    assert (given["reference_ms"], given["compiled_ms"], given["speedup"]) == (3, 2, 1.5)
    assert (given["compiled_spread_ms"], given["speedup_spread"]) == ([2, 2], [1.5, 1.5])
    assert (given["told_apart"], given["drift"], given["images_per_second"]) == (True, 0, 1000)
    assert (given["products_ms"], given["bytes_ms"], given["ceiling_ms"], given["share_of_ceiling"]) == (1, 0.5, 1, 0.5)
    assert (given["others"], given["remarks"]) == (0.25, [])


def test_the_ceiling_is_of_what_the_model_does(timed, monkeypatch):
    """Of the digits model's products in fp32, at one operation a nanosecond; memory costs nothing."""
    monkeypatch.setattr(
        cf.Reference, "ceiling", lambda self, precision, device: Ceiling({precision: 1e9}, {}, precision)
    )
    one, two = cf.benchmark(["digits"], [1, 2], backend="reference", rounds=1)
    assert one.products_ms > 1
    assert (two.products_ms, one.bytes_ms) == (pytest.approx(2 * one.products_ms), None)
    assert one.ceiling_ms == one.products_ms
    (larger,) = cf.benchmark(["digits"], [1], size=128, backend="reference", rounds=1)
    assert larger.products_ms > 3 * one.products_ms


@pytest.fixture
def others(timed, monkeypatch):
    """others(cores, ...): what others use when it is asked, one time after another."""

    def use(*cores):
        asked = iter(cores)
        monkeypatch.setattr(Idle, "used", lambda self: next(asked))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    return use


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert {one.filename for one in caught} <= {__file__}  # where it was called
    return [str(one.message) for one in caught]


def test_a_busy_machine_is_said_before_and_once(others):
    others(1.25, 1.5, 1.5)
    (said,) = warned(lambda: cf.benchmark(["digits"], [1, 2], backend="reference"))
    assert said == (
        "the machine is busy: other processes use 1.2 of 2 cores, and this needs 2; end other programs or "
        "wait, then measure again"
    )


def test_one_that_becomes_busy_is_said_with_the_row(others):
    others(0.0, 0.01, 0.5)
    (said,) = warned(lambda: cf.benchmark(["digits"], [1, 3], backend="reference"))
    assert said.startswith("the machine is busy: other processes used, during digits, batch 3, 0.5 of 2 cores")


def test_an_idle_one_and_one_that_nothing_is_known_of_are_not(others):
    others(0.0, 0.05)
    assert warned(lambda: cf.benchmark(["digits"], [1], backend="reference")) == []
    others(None, None)
    assert warned(lambda: cf.benchmark(["digits"], [1], backend="reference")) == []


def test_more_threads_than_a_container_allows(others, monkeypatch):
    others(0.0, 0.0)
    monkeypatch.setattr(busy, "allowed", lambda: 1.5)
    (said,) = warned(lambda: cf.benchmark(["digits"], [1], backend="reference"))
    assert said == "2 threads share the 1.5 cores that this process may use; run it with OMP_NUM_THREADS=1"


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            cf.EngineError,
            "3 images of 64x64 .* give a smaller batch",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), cf.EngineError, "3 images of 64x64 .* give a smaller batch"),
        (RuntimeError("another"), RuntimeError, "another"),
    ],
)
def test_a_batch_beyond_the_memory_is_named(timed, monkeypatch, raised, error, said):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(benchmark_module, "seconds_in_turn", fails)
    with pytest.raises(error, match=said):
        cf.benchmark(["digits"], [3], backend="reference")


def test_a_row_has_a_bar_of_its_own(timed, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, what, total, unit=""):
            self.line = [what, total, 0, "open"]
            bars.append(self.line)

        def update(self):
            self.line[2] += 1

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            self.line[3] = "gone"

    monkeypatch.setattr(benchmark_module, "Bar", Bar)
    open_ones = []
    cf.benchmark(
        ["digits"],
        [1, 2],
        backend="reference",
        rounds=4,
        each=lambda row: open_ones.append([bar for bar in bars if bar[3] == "open"]),
    )
    assert bars == [
        ["compiling digits", 1, 1, "gone"],
        ["measuring this machine", 1, 1, "gone"],
        ["digits, batch 1", 4, 4, "gone"],
        ["digits, batch 2", 4, 4, "gone"],
    ]
    assert open_ones == [[], []]  # a line of the table is printed when none is shown
