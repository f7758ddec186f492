"""benchmark(): compiled models beside their references."""

from __future__ import annotations

import pytest
import torch

import conformer_fast as cf
from conformer_fast.deploy import benchmark as benchmark_module
from conformer_fast.engines.base import Precisions
from conformer_fast.engines.registry import make
from conformer_fast.engines.timing import Timing


@pytest.fixture
def timed(monkeypatch):
    """What was timed: the compiled model, the images' shape and the rounds. The reference takes 3 s, the model 2 s."""
    calls = []

    def time_in_turn(candidates, images, rounds):
        assert list(candidates) == ["reference", "compiled"]
        for call in candidates.values():
            call(images)
        calls.append((candidates["compiled"], tuple(images.shape), rounds))
        return {"reference": Timing(3, 3, 3, 1), "compiled": Timing(2, 2, 2, 1.6)}

    monkeypatch.setattr(benchmark_module, "time_in_turn", time_in_turn)
    return calls


def test_a_row_for_each_model_and_batch(timed):
    seen = []
    rows = cf.benchmark(["digits", "digits"], [1, 3], backend="reference", rounds=4, each=seen.append)
    assert [(row.model, row.batch, row.size) for row in rows] == [("digits", 1, 64), ("digits", 3, 64)] * 2
    assert [(shape, rounds) for _, shape, rounds in timed] == [((1, 3, 64, 64), 4), ((3, 3, 64, 64), 4)] * 2
    assert seen == rows
    row = rows[1]
    assert (row.backend, row.precision, row.device) == ("reference", "fp32", "cpu")
    assert (row.reference_ms, row.compiled_ms, row.speedup) == (3000, 2000, 1.6)
    assert row.images_per_second == 1.5
    assert str(row).split() == ["digits", "3", "3000.0", "2000.0", "1.5", "1.60x", "reference", "fp32"]


def test_another_size(timed):
    (row,) = cf.benchmark(["digits"], [2], size=32, backend="reference")
    assert (row.size, timed[0][1]) == (32, (2, 3, 32, 32))


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
