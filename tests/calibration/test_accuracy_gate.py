"""The gate finds the products that 8 bits break, puts those and no others back, and says what it did."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import goldens
import lookalikes
import pytest
import torch
from eight_bits import largest_inputs

from conformer_fast.calibration.accuracy_gate import SQNR_FLOOR, gate, sensitivities
from conformer_fast.calibration.observer import Observer
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization, addend_of
from conformer_fast.model.outputs import SUM
from conformer_fast.model.reference import Conformer

BROKEN = "conv_trans_2.trans_block.fc1"


def images() -> list[torch.Tensor]:
    return [goldens.image(4, 64, 96), goldens.image(3, 64, 96).flip(-1)]


@pytest.fixture
def fused(small_model) -> InferenceConformer:
    return lower(small_model)


@pytest.fixture
def ranges(fused) -> dict[str, float]:
    return largest_inputs(fused, images())


@pytest.fixture
def broken(ranges) -> Quantization:
    """As one outlier a thousand times the rest would leave it: nearly everything that fc1 reads becomes zero."""
    return Quantization("int8", {**ranges, BROKEN: 1000 * ranges[BROKEN]}, origin={"method": "max"})


def test_exactly_the_broken_product_goes_back(fused, broken):
    found, report = gate(fused, broken, images(), max_drop=0)
    assert report.before.sqnr_db < SQNR_FLOOR <= report.after.sqnr_db
    assert [product.product for product in report.restored] == [BROKEN]
    assert report.holds
    assert found.ranges == {name: value for name, value in broken.ranges.items() if name != BROKEN}
    assert next(iter(report.sensitivities)) == BROKEN
    second = list(report.sensitivities.values())[1]
    assert report.restored[0].error == report.sensitivities[BROKEN] > 3 * second


def test_with_labels_accuracy_alone_decides(fused, broken):
    """Scores that lose no label may be anything; where labels are lost, the product goes back."""
    model = fused.with_outputs((SUM,))

    def run(quantization):
        return lambda batch: [scores.roll(int(BROKEN in quantization.ranges), -1) for scores in model(batch)]

    right = torch.cat([model(batch)[0].argmax(-1) for batch in images()])
    found, report = gate(fused, broken, images(), max_drop=0, labels=((right + 1) % 7).tolist(), run=run)
    assert report.before.sqnr_db < SQNR_FLOOR
    assert (report.reference_top1, report.before.top1, report.before.agreement) == (0, 1, 0)
    assert (report.restored, found.ranges) == ((), broken.ranges)
    found, report = gate(fused, broken, images(), max_drop=99, labels=right, run=run)
    assert (report.reference_top1, report.before.top1, report.after.top1) == (1, 0, 1)
    assert [product.product for product in report.restored] == [BROKEN]


def test_what_is_good_enough_is_left_alone(fused, ranges):
    quantization = Quantization("int8", ranges)
    found, report = gate(fused, quantization, images(), max_drop=100)
    assert found == quantization
    assert (report.restored, report.sensitivities, report.holds) == ((), {}, True)
    assert report.before == report.after


def test_all_go_back_if_they_must(fused, ranges):
    """Ranges that break every product, and no drop allowed: nothing stays in 8 bits, and that holds."""
    useless = Quantization("int8", {name: 1e6 * value for name, value in ranges.items()})
    found, report = gate(fused, useless, images(), max_drop=0)
    products = {name for name in ranges if not name.endswith(".addend")}
    restored = [product.product for product in report.restored]
    assert found.ranges.keys() == ranges.keys() - {name for part in restored for name in (part, addend_of(part))}
    assert report.holds
    assert len(restored) > len(products) / 2
    assert [product.error for product in report.restored] == sorted(report.sensitivities.values(), reverse=True)[
        : len(restored)
    ]


def test_sensitivities_are_errors_of_one_product_alone(fused, ranges):
    quantization = Quantization("int8", ranges)
    model = fused.with_outputs((SUM,))
    found = sensitivities(model, quantization, images())
    assert found.keys() == {name for name in ranges if not name.endswith(".addend")}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    batch = torch.cat(images())
    for product in ("trans_1.qkv", "conv_1.conv3"):
        alone = {name: ranges[name] for name in (product, addend_of(product)) if name in ranges}
        (exact,), (mine,) = model(batch), model.quantized(replace(quantization, ranges=alone))(batch)
        assert found[product] == pytest.approx(((mine - exact).norm() / exact.norm()).item(), rel=1e-3)


def test_work_is_the_share_of_multiply_adds(fused, broken):
    """That of fc1 by hand: tokens, times its weight's size."""
    _, report = gate(fused, broken, images(), max_drop=0)
    observer = Observer(fused)
    observer.observe(images()[0][:1], lambda name, value: None)
    tokens, C = 1 + 4 * 6, fused.config.embed_dim
    assert observer.multiply_adds[BROKEN] == tokens * C * 2 * C
    assert observer.multiply_adds["patch_embed"] == (tokens - 1) * C * 64 * 4 * 4
    assert observer.multiply_adds["conv_trans_2.down.project"] == (tokens - 1) * C * 32
    share = tokens * C * 2 * C / sum(observer.multiply_adds.values())
    assert report.restored[0].multiply_adds == pytest.approx(share)
    assert f"{share:.1%} of the 8-bit multiply-adds are in 16 bits, time not measured" in str(report)


def test_the_price_may_be_measured(fused, broken):
    asked = []

    def time(before, after):
        asked.append((before, after))
        return 0.010, 0.012

    found, report = gate(fused, broken, images(), max_drop=0, time=time)
    assert asked == [(broken, found)]
    assert report.price == "+20.0% time a batch, measured (10.0 -> 12.0 ms)"


def test_another_runner_is_judged_as_the_simulation_is(fused, broken):
    """Such as an engine: here one that is right only without the broken product, and one that never is."""
    model = fused.with_outputs((SUM,))
    asked = []

    def run(quantization):
        asked.append(BROKEN in quantization.ranges)
        return lambda batch: [value * (-1 if asked[-1] else 1) for value in model(batch)]

    _, report = gate(fused, broken, images(), max_drop=0, run=run)
    assert asked == [True, False]
    assert report.before.sqnr_db == pytest.approx(-6.02, abs=0.01)
    assert report.after.sqnr_db == math.inf
    found, report = gate(fused, broken, images(), max_drop=0, run=lambda quantization: lambda batch: [-model(batch)[0]])
    assert not report.holds
    assert found.ranges == {}
    assert str(report).endswith("the gate does NOT hold")


def test_features_are_judged_by_their_error(small_config):
    fused = lower(lookalikes.fill(Conformer(small_config, features_only=True)).eval())
    ranges = largest_inputs(fused, images())
    broken = Quantization("int8", {**ranges, "trans_1.fc2": 1000 * ranges["trans_1.fc2"]})
    _, report = gate(fused, broken, images(), max_drop=0)
    assert (report.before.top1, report.before.agreement) == (None, None)
    assert report.holds


def test_the_report_is_kept_and_is_json(fused, broken):
    found, report = gate(fused, broken, images(), max_drop=0)
    assert found.origin == {"method": "max", "gate": report.to_dict()}
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["restored"][0]["product"] == BROKEN
    assert values["before"]["sqnr_db"] == report.before.sqnr_db
    text = str(report)
    assert "int8, 7 images, at most 0 points down" in text
    assert f"1 of {len(report.sensitivities)} products back in 16 bits" in text
    assert text.endswith("the gate holds")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1}, "max_drop must be percentage points, 0 or more, got -1"),
        ({"max_drop": math.nan}, "max_drop must be percentage points"),
        ({"labels": [0] * 6}, "got 6 labels for 7 images"),
        ({"labels": [0] * 6 + [7]}, "labels must be classes 0 to 6 of the model, got 0 to 7"),
        ({"labels": [0.5] * 7}, "labels must be classes"),
        ({"images": []}, "the gate got no images"),
    ],
)
def test_bad_arguments(options, message, fused, broken):
    with pytest.raises(ValueError, match=message):
        gate(fused, broken, **{"images": images(), "max_drop": 0.5, **options})


def test_features_have_no_labels(small_config):
    fused = lower(lookalikes.fill(Conformer(small_config, features_only=True)).eval())
    with pytest.raises(ValueError, match="labels need a model with heads"):
        gate(fused, Quantization("int8", {}), images(), max_drop=1, labels=[0] * 7)
