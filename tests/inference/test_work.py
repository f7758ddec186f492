"""What networks must do at least: held to hand counts of the operations, and to the arguments' own bytes."""

from __future__ import annotations

import pytest
import torch

from conformer_fast.inference import work
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.reference import Conformer

GMAC = {"tiny-p16": 5.14, "small-p32": 6.62, "small-p16": 10.27, "base-p16": 22.58}  # an image, counted by hand


def total(made, what):
    return sum(getattr(one, what) for one in made)


@pytest.mark.slow
@pytest.mark.parametrize("variant", GMAC)
def test_products_are_those_counted_by_hand(variant):
    one, two = (work.of_network(VARIANTS[variant], (batch, 3, 224, 224), "fp32") for batch in (1, 2))
    assert total(one, "flops") / 2e9 == pytest.approx(GMAC[variant], abs=0.005)
    assert total(two, "flops") == 2 * total(one, "flops")
    assert total(two, "weights") == total(one, "weights")
    assert total(two, "activations") == 2 * total(one, "activations")


def test_weights_are_the_networks_own(small_config):
    """Each is read once; of every precision, in its own bytes."""
    network = lower(Conformer(small_config).eval())
    own = {id(value): work.size(value) for name, value in network.named_buffers() if work.is_weight(name)}
    made = work.of_network(small_config, (1, 3, 64, 64), "fp32")
    assert total(made, "weights") >= sum(own.values())
    assert total(made, "weights") == pytest.approx(sum(own.values()), rel=0.05)  # a last norm may be read twice
    halves = work.of_network(small_config, (1, 3, 64, 64), "bf16")
    assert total(made, "weights") == pytest.approx(2 * total(halves, "weights"), rel=0.05)  # norms stay in fp32


def test_products_in_8_bits_are_told_apart(small_config):
    ranges = Quantization("int8", {"conv_1.conv1": 2.0, "conv_1.conv2": 2.0})
    plain, stored = (work.of_network(small_config, (1, 3, 64, 64), "fp32", given) for given in (None, ranges))
    assert {one.precision for one in plain} == {"fp32"}
    assert [one.precision for one in stored].count("int8") == 2
    assert total(plain, "flops") == total(stored, "flops")
    assert total(stored, "weights") < total(plain, "weights")


def test_a_backbone_has_no_heads(small_config):
    classifier, backbone = (
        work.of_network(small_config, (1, 3, 64, 64), "fp32", features_only=features_only)
        for features_only in (False, True)
    )
    assert 0 < total(backbone, "flops") < total(classifier, "flops")


def test_nothing_is_computed(small_config):
    """A batch that no memory holds."""
    made = work.of_network(small_config, (1 << 20, 3, 224, 224), "fp32")
    assert total(made, "activations") > 1 << 44


def test_strided_products_read_what_they_need():
    call = {"feature_map": torch.empty(1, 8, 8, 16), "weight": torch.empty(4, 16), "bias": torch.empty(4), "stride": 2}
    one = work.of_call("conv1x1", work.arguments_of("conv1x1", (), call), "fp32")
    assert (one.weights, one.activations) == (4 * (4 * 16 + 4), 4 * 4 * 4 * (16 + 4))
    assert one.flops == 2 * 16 * 16 * 4
