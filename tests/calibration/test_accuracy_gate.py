"""The gate finds the products that 8 bits break, puts those and no others back, and says what it did."""

from __future__ import annotations

import json
import math
import warnings
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
from conformer_fast.inference.quantization import Quantization, product_of
from conformer_fast.model.outputs import SUM
from conformer_fast.model.reference import Conformer

pytestmark = pytest.mark.slow

BROKEN = "conv_trans_2.trans_block.fc1"


def images() -> list[torch.Tensor]:
    return [goldens.image(4, 64, 96), goldens.image(3, 64, 96).flip(-1)]


@pytest.fixture
def network(small_model) -> InferenceConformer:
    return lower(small_model)


@pytest.fixture
def ranges(network) -> dict[str, float]:
    return largest_inputs(network, images())


@pytest.fixture
def broken(ranges) -> Quantization:
    """As one outlier a thousand times the rest would leave it: nearly everything that fc1 reads becomes zero."""
    return Quantization("int8", {**ranges, BROKEN: 1000 * ranges[BROKEN]}, origin={"method": "max"})


def test_exactly_the_broken_product_goes_back(network, broken):
    found, report = gate(network, broken, images(), max_drop=0)
    assert report.before.sqnr_db < SQNR_FLOOR <= report.after.sqnr_db
    assert [product.product for product in report.restored] == [BROKEN]
    assert report.holds
    assert found.ranges == {name: value for name, value in broken.ranges.items() if name != BROKEN}
    assert next(iter(report.sensitivities)) == BROKEN
    second = list(report.sensitivities.values())[1]
    assert report.restored[0].error == report.sensitivities[BROKEN] > 3 * second


def test_with_labels_accuracy_alone_decides(network, ranges):
    """Scores that lose no label may be anything; where labels are lost, products go back."""
    spoilt = Quantization("int8", {name: 1000 * value for name, value in ranges.items()})
    model = network.with_outputs((SUM,))
    forms = model, model.quantized(spoilt)
    right, wrong = (torch.cat([form(batch)[0].argmax(-1) for batch in images()]) for form in forms)
    assert not torch.equal(right, wrong)
    read_only = wrong.numpy()
    read_only.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        found, report = gate(network, spoilt, images(), max_drop=0, labels=read_only)
    assert report.before.sqnr_db < SQNR_FLOOR
    assert (report.before.top1, report.reference_top1) == (1, report.before.agreement)
    assert report.reference_top1 < 1
    assert (report.restored, found.ranges) == ((), spoilt.ranges)
    found, report = gate(network, spoilt, images(), max_drop=0, labels=right)
    assert (report.reference_top1, report.after.top1) == (1, 1)
    assert report.before.top1 < 1
    assert report.restored


def test_what_is_good_enough_is_left_alone(network, ranges):
    quantization = Quantization("int8", ranges)
    found, report = gate(network, quantization, images(), max_drop=100)
    assert found == quantization
    assert (report.restored, report.sensitivities, report.holds) == ((), {}, True)
    assert report.before == report.after


def test_all_go_back_if_they_must(network, ranges):
    """Ranges that break every product, and no drop allowed: nothing stays in 8 bits, and that holds."""
    useless = Quantization("int8", {name: 1e6 * value for name, value in ranges.items()})
    found, report = gate(network, useless, images(), max_drop=0)
    products = {product_of(name) for name in ranges}
    restored = [product.product for product in report.restored]
    assert found.ranges.keys() == {name for name in ranges if product_of(name) not in restored}
    assert report.holds
    assert len(restored) > len(products) / 2
    assert [product.error for product in report.restored] == sorted(report.sensitivities.values(), reverse=True)[
        : len(restored)
    ]


def test_sensitivities_are_errors_of_one_product_alone(network, ranges):
    quantization = Quantization("int8", ranges)
    model = network.with_outputs((SUM,))
    found = sensitivities(model, quantization, images())
    assert found.keys() == {product_of(name) for name in ranges}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    batch = torch.cat(images())
    for product in ("trans_1.qkv", "conv_1.conv3"):
        alone = {name: ranges[name] for name in ranges if product_of(name) == product}
        (exact,), (mine,) = model(batch), model.quantized(replace(quantization, ranges=alone))(batch)
        assert found[product] == pytest.approx(((mine - exact).norm() / exact.norm()).item(), rel=1e-3)


def test_work_is_the_share_of_multiply_adds(network, broken):
    """That of fc1 by hand: tokens, times its weight's size."""
    _, report = gate(network, broken, images(), max_drop=0)
    observer = Observer(network)
    observer.observe(images()[0][:1], lambda name, value: None)
    tokens, C = 1 + 4 * 6, network.config.embed_dim
    assert observer.multiply_adds[BROKEN] == tokens * C * 2 * C
    assert observer.multiply_adds["patch_embed"] == (tokens - 1) * C * 64 * 4 * 4
    assert observer.multiply_adds["conv_trans_2.down.project"] == (tokens - 1) * C * 32
    share = tokens * C * 2 * C / sum(observer.multiply_adds.values())
    assert report.restored[0].multiply_adds == report.multiply_adds == pytest.approx(share)
    assert f"{share:.1%} of the 8-bit multiply-adds are in 16 bits, time not measured" in str(report)


def test_the_price_may_be_measured(network, broken):
    asked = []

    def time(before, after):
        asked.append((before, after))
        return 0.010, 0.012

    found, report = gate(network, broken, images(), max_drop=0, time=time)
    assert asked == [(broken, found)]
    assert report.seconds == (0.010, 0.012)
    assert "price: +20.0% time a batch, measured (10.0 -> 12.0 ms)" in str(report).splitlines()


def test_what_16_bits_do_not_mend(network, ranges):
    """Smoothing that overflows, which stays when every product is back."""
    useless = Quantization("int8", ranges, {"trans_1.qkv": (1e-45,) * network.config.embed_dim})
    found, report = gate(network, useless, images(), max_drop=0)
    assert not report.holds
    assert found.ranges == {}
    assert report.to_dict()["after"]["sqnr_db"] is None
    assert str(report).endswith("the gate does NOT hold")


def test_an_empty_batch_says_nothing(network, broken):
    empty = [images()[0][:0], *images()]
    assert gate(network, broken, empty, max_drop=0) == gate(network, broken, images(), max_drop=0)


def test_features_are_judged_by_their_error(small_config):
    network = lower(lookalikes.fill(Conformer(small_config, features_only=True)).eval())
    ranges = largest_inputs(network, images())
    broken = Quantization("int8", {**ranges, "trans_1.fc2": 1000 * ranges["trans_1.fc2"]})
    _, report = gate(network, broken, images(), max_drop=0)
    assert (report.before.top1, report.before.agreement) == (None, None)
    assert report.holds


def test_the_report_is_kept_and_is_json(network, broken):
    found, report = gate(network, broken, images(), max_drop=0)
    assert found.origin == {"method": "max", "gate": report.to_dict()}
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["restored"][0]["product"] == BROKEN
    assert values["before"]["sqnr_db"] == report.before.sqnr_db
    assert values["multiply_adds"] == values["restored"][0]["multiply_adds"]
    assert not [name for name, value in values.items() if isinstance(value, str) and name != "precision"]
    text = str(report)
    head, row = text.splitlines()[3:5]
    assert head.split() == ["product", "error", "work"]
    assert row.split() == [BROKEN, f"{report.restored[0].error:.2e}", f"{report.multiply_adds:.2%}"]
    assert len(head) == len(row)
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
def test_bad_arguments(options, message, network, broken):
    with pytest.raises(ValueError, match=message):
        gate(network, broken, **{"images": images(), "max_drop": 0.5, **options})


def test_features_have_no_labels(small_config):
    network = lower(lookalikes.fill(Conformer(small_config, features_only=True)).eval())
    with pytest.raises(ValueError, match="labels need a model with heads"):
        gate(network, Quantization("int8", {}), images(), max_drop=1, labels=[0] * 7)
