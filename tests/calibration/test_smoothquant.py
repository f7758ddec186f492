"""Smoothing changes nothing but rounding, and is chosen where layer norms have outlying channels."""

from __future__ import annotations

import goldens
import pytest
import torch

from conformer_fast.calibration.observer import Observer
from conformer_fast.calibration.smoothquant import smoothing_factors
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization

OUTLYING = ("trans_1.fc1", "conv_trans_2.trans_block.qkv")


def images() -> list[torch.Tensor]:
    return [goldens.image(4, 64, 96), 2 * goldens.image(4, 64, 96).flip(-1)]


@pytest.fixture
def network(small_model) -> InferenceConformer:
    return lower(small_model)


@pytest.fixture
def outlying(network) -> InferenceConformer:
    """An equal model: two norms have three channels 60 times as large, which their products' weights take back."""
    factors = torch.ones(network.config.embed_dim)
    factors[[3, 17, 40]] = 1 / 60
    return network.smoothed({name: factors.tolist() for name in OUTLYING})


def errors(model: InferenceConformer, quantization: Quantization) -> list[float]:
    """Of each output in 8 bits, relative."""
    batch = torch.cat(images())
    return [
        ((found - exact).norm() / exact.norm()).item()
        for found, exact in zip(model.quantized(quantization)(batch), model(batch), strict=True)
    ]


@pytest.mark.parametrize("names", [["trans_1.qkv"], ["trans_1.fc1"], OUTLYING], ids="-".join)
def test_an_smoothed_model_is_equal(names, network):
    """In float64, for factors over four decades."""
    exact = network.double()
    factors = {name: (10 ** (4 * torch.rand(network.config.embed_dim) - 2)).tolist() for name in names}
    smoothed = exact.smoothed(factors)
    batch = goldens.image(2, 64, 96).double()
    for found, expected in zip(smoothed(batch), exact(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for name in names:
        assert not torch.equal(smoothed.get_buffer(f"{name}.weight"), exact.get_buffer(f"{name}.weight"))


def test_what_the_product_reads_is_divided(network):
    factors = {"trans_1.qkv": [2.0] * 24 + [0.5] * 24}
    seen: dict[str, list[torch.Tensor]] = {}
    for model in (network, network.smoothed(factors)):
        Observer(model).observe(goldens.image(1, 64, 96), lambda name, value: seen.setdefault(name, []).append(value))
    before, after = seen["trans_1.qkv"]
    torch.testing.assert_close(after, before / torch.tensor(factors["trans_1.qkv"]))
    torch.testing.assert_close(*seen["trans_1.fc1"])


def test_the_given_model_is_untouched(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.smoothed({"trans_1.qkv": [2.0] * 48})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "factors", "message"),
    [
        ("trans_1.fc2", [1.0] * 48, "trans_1.fc2 is no product that reads a layer norm"),
        ("conv_1.conv1", [1.0] * 48, "conv_1.conv1 is no product that reads a layer norm"),
        ("trans_9.qkv", [1.0] * 48, "trans_9.qkv is no product that reads a layer norm"),
        ("trans_1.qkv", [1.0] * 47, "takes 48 positive factors, got 47"),
        ("trans_1.qkv", [1.0] * 47 + [0.0], "takes 48 positive factors, got 48 of which the least is 0"),
        ("trans_1.qkv", [1.0] * 47 + [float("nan")], "takes 48 positive factors"),
        ("trans_1.qkv", [], "takes 48 positive factors, got 0"),
    ],
)
def test_factors_that_do_not_fit(name, factors, message, network):
    with pytest.raises(ValueError, match=message):
        network.smoothed({name: factors})


def test_it_is_chosen_where_channels_lie_out(network, outlying):
    """And there only: the plain model's norms gain too little to be touched."""
    assert smoothing_factors(network, images(), "int8") == {}
    assert set(smoothing_factors(outlying, images(), "int8")) == set(OUTLYING)


def test_it_takes_the_outliers_back(network, outlying):
    """The scores err as little as those of the model without outliers; without it, several times as much."""
    plain, bad = (dict.fromkeys(OUTLYING, 0.0) for _ in range(2))

    def see(found):
        return lambda name, value: found.update({name: max(found.get(name, 0.0), value.abs().max().item())})

    for model, found in ((network, plain), (outlying, bad)):
        for batch in images():
            Observer(model).observe(batch, see(found))
    factors = smoothing_factors(outlying, images(), "int8")
    smoothed: dict[str, float] = {}
    for batch in images():
        Observer(outlying.smoothed(factors)).observe(batch, see(smoothed))

    def of_the_norms(ranges):
        return {name: ranges[name] for name in OUTLYING}

    usual = max(errors(network, Quantization("int8", of_the_norms(plain))))
    worse = max(errors(outlying, Quantization("int8", of_the_norms(bad))))
    better = max(errors(outlying, Quantization("int8", of_the_norms(smoothed), factors)))
    assert worse > 5 * usual
    assert better < 2 * usual
