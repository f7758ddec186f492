"""The bound of 8 bits: that of the same arithmetic in PyTorch, and an absolute floor."""

import math
from dataclasses import replace

import lookalikes
import pytest
import torch
from eight_bits import largest_inputs
from verify_samples import BLOCKS, LOGITS, compiled, images, run_by

from conformer_fast import Conformer
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.distance import ALLOWANCE, FLOOR, relative_error
from conformer_fast.model.outputs import observed_outputs
from conformer_fast.verification.floors import FLOORS
from conformer_fast.verification.verify import verify as verify_against


def in_8_bits(model: Conformer, quantization: Quantization, dtype: torch.dtype = torch.float16):
    """A compiled model of 8 bits, as an engine would be, and what makes engines like it."""
    quantized = lower(model).in_precision(dtype).quantized(quantization)
    fast = compiled(model)
    fast.settings = replace(fast.settings, precision=quantization.precision)

    def engine(outputs):
        return lambda batch: tuple(value.float() for value in quantized.with_outputs(outputs)(batch))

    return run_by(engine(LOGITS), fast), engine


def quantization_for(model: Conformer, precision: str) -> Quantization:
    return Quantization(precision, largest_inputs(lower(model), [images(4, 3, 32, 32)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_bound_of_8_bits_is_that_of_the_simulated_model(precision, dtype, small_model):
    quantization, batch = quantization_for(small_model, precision), images(2, 3, 32, 48)
    fast, engine = in_8_bits(small_model, quantization, dtype)
    report = verify_against(fast, batch, small_model, engine, quantization)
    everything = [*LOGITS, *BLOCKS]
    with torch.no_grad():
        exact = observed_outputs(
            lookalikes.fill(Conformer(small_model.config)).eval().double(), batch.double(), everything
        )
        simulated = lower(small_model).quantized(quantization).with_outputs(everything)(batch)
    rows = {row.name: row for row in (*report.results, *report.blocks)}
    assert list(rows) == everything
    for name, true, value in zip(everything, exact, simulated, strict=True):
        error = relative_error(value, true)
        assert error > FLOOR[precision]  # so that the floor alone would not do
        assert rows[name].eager_error == pytest.approx(error, rel=0.02)
        assert rows[name].bound == ALLOWANCE * rows[name].eager_error + FLOOR[precision]
        assert rows[name].within
    assert report.verdict.startswith(f"within the bound for {precision}: ")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bits_with_other_scales_are_not_within(precision, small_model):
    right = quantization_for(small_model, precision)
    last = "conv_trans_3.fusion_block.conv3"
    wrong = replace(right, ranges={**right.ranges, last: right.ranges[last] / 50})
    fast, engine = in_8_bits(small_model, wrong)
    report = verify_against(fast, images(2, 3, 32, 32), small_model, engine, right)
    assert not report.within
    assert [row.name for row in report.blocks if not row.within] == ["3.map"]


def test_the_floor_is_the_bound_of_8_bits_without_their_quantization(small_model):
    fast, engine = in_8_bits(small_model, quantization_for(small_model, "int8"))
    report = verify_against(fast, images(1, 3, 32, 32), small_model, engine)
    assert all(row.bound == FLOORS["int8"].error and math.isnan(row.eager_error) for row in report.results)
    assert "nan" not in str(report)
    assert all(row.bound == math.inf and math.isnan(row.eager_error) for row in report.blocks)
    assert report.verdict.startswith("within the bound for int8: ")
    assert report.verdict.endswith("of its bound, the floor of 14 dB, as its quantization is not known here")


@pytest.mark.parametrize("precision", ["fp8", "fp32"])
def test_quantization_of_another_precision(precision, small_model):
    fast, engine = in_8_bits(small_model, quantization_for(small_model, "int8"))
    fast.settings = replace(fast.settings, precision=precision)
    with pytest.raises(ValueError, match=f"runs in {precision}, its quantization is for int8"):
        verify_against(fast, images(1, 3, 32, 32), small_model, engine, Quantization("int8", {}))
